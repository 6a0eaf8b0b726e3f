//! Training of a part of the model, from the command line.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use cn_clip::model::checkpoint::Checkpoint;
use run::{fail, succeed};

#[test]
fn unlocked_blocks_move_and_their_run_can_be_continued() {
    let directory = tempfile::tempdir().unwrap();
    let resume = tiny::flag("resume", &tiny::weights());
    let train = |more: &[&str]| tiny::train(directory.path(), more);
    let locked = [
        "--name=part",
        "--freeze-vision",
        "--unlocked-vision-blocks=1",
        "--freeze-text",
        "--unlocked-text-blocks=1",
        "--layer-decay=0.5",
    ];
    let fresh = [&*resume, "--reset-optimizer", "--reset-data-offset", "--max-steps=2"];
    let log = succeed(train(&[&locked[..], &fresh].concat()));
    for tower in ["visual", "text"] {
        let said = format!("The {tower} encoder is freezed during training but for its last 1");
        assert!(log.contains(&said), "{log}");
    }
    let before = Checkpoint::open(tiny::weights()).unwrap();
    let file = directory.path().join("part/checkpoints/epoch_latest.pt");
    let after = Checkpoint::open(&file).unwrap();
    let number = |key: &str, prefix: &str| -> Option<usize> {
        key.strip_prefix(prefix)?.split('.').next()?.parse().ok()
    };
    let blocks =
        |prefix: &str| after.state_dict.iter().filter_map(|(key, _)| number(key, prefix)).max();
    let (vision, text) = ("visual.transformer.resblocks.", "bert.encoder.layer.");
    let (last_vision, last_text) = (blocks(vision), blocks(text));
    let unlocked = |key: &str| match key {
        "logit_scale" | "text_projection" | "visual.proj" => true,
        key if key.starts_with("visual.ln_post") => true,
        key => {
            number(key, vision).is_some_and(|block| Some(block) == last_vision)
                || number(key, text).is_some_and(|block| Some(block) == last_text)
        }
    };
    let mut trained = 0;
    for (key, tensor) in &after.state_dict {
        let same = before.get(key).unwrap().read().unwrap() == tensor.read().unwrap();
        // The gradient of key biases is zero but for rounding, and so may be their step.
        if !golden::has_zero_gradient(key) {
            assert_eq!(same, !unlocked(key), "{key}");
        }
        trained += usize::from(unlocked(key));
    }
    let held: usize = after.optimizer.unwrap().group_sizes.iter().sum();
    assert_eq!(held, trained, "locked parameters have no optimizer state");
    let log = succeed(train(&[&locked[..], &["--max-steps=3"]].concat()));
    assert!(log.contains("=> optimizer state is restored") && log.contains("3/3"), "{log}");
    // Other blocks do not fit that state.
    let other = ["--name=part", "--freeze-vision", "--max-steps=4"];
    assert!(fail(train(&other), 1).contains("--reset-optimizer"));
    for tower in ["vision", "text"] {
        let alone = format!("--unlocked-{tower}-blocks=1");
        let error = fail(train(&["--name=none", &alone]), 1);
        assert!(error.contains(&format!("--freeze-{tower}")), "{error}");
    }
}

#[test]
fn flags_of_the_reference_that_are_not_needed_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let flags = [
        "--max-steps=2",
        "--use_flash_attention",
        "--gather_with_grad",
        "--skip_aggregate",
        "--use_bn_sync",
        "--num_workers=1",
        "--valid_num_workers=2",
        "--precision=fp32",
        "--debug",
    ];
    let log = succeed(tiny::train(directory.path(), &flags));
    for line in ["  num_workers: 1", "  valid_num_workers: 2", "  use_augment: False"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}
