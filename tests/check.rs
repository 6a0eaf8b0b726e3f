//! `cn-clip check`, and its short form before a training run.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};

fn check(directory: &Path, more: &[&str]) -> String {
    let mut args = tiny::train(directory, more);
    args[0] = "check".to_string();
    let output = run::run(args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn data_weights_and_settings_are_judged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let said = check(path, &["--max-steps=2", "--warmup=50", "--lr=1e-6", "--context-length=4"]);
    for part in [
        "- 13 of 13 pairs looked at: 8 pictures",
        "! no trained weights: the logit scale is 2.66",
        "--resume",
        "! --warmup 50",
        "! --lr 1e-6 is low",
        "--context-length",
        "--accum-freq",
        "- 13 pictures can be read",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // With trained weights.
    let logs = path.join("logs");
    let mut args = tiny::train(path, &["--max-steps=4"]);
    args.push(tiny::flag("logs", &logs));
    run::succeed(args);
    let weights = tiny::flag("resume", &logs.join("train_clip/checkpoints/epoch_latest.pt"));
    let said = check(path, &[&tiny::flag("logs", &logs)]);
    assert!(said.contains("! this run continues") && !said.contains("no trained"), "{said}");
    let anew = check(path, &[&tiny::flag("logs", &logs), "--no-auto-resume"]);
    assert!(!anew.contains("this run continues") && anew.contains("no trained weights"), "{anew}");
    let said = check(path, &[&weights, "--lr=1e-2"]);
    assert!(said.contains("- weights are loaded"), "{said}");
    assert!(said.contains("! --lr 1e-2 is high for fine-tuning"), "{said}");
    // Nothing was trained, and nothing written.
    assert!(!path.join("train_clip").exists());
}

#[test]
fn steps_are_those_of_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let steps = |more: &[&str]| check(directory.path(), more);
    // 13 pairs of 8 pictures, filled up to whole batches of 4, of which some make no step.
    let said = steps(&["--max-epochs=3", "--accum-freq=3"]);
    assert!(said.contains("13 pairs, 12 in a step: 1 steps in an epoch, 3 in all"), "{said}");
    let said = steps(&["--max-epochs=2", "--one-caption-per-image"]);
    assert!(said.contains("8 pairs, 4 in a step: 2 steps in an epoch, 4 in all"), "{said}");
}

#[test]
fn faults_of_the_data_are_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let picture = fs::read(golden::fixture("preprocess/03_scene.jpg")).unwrap();
    let (mut tsv, mut jsonl) = (String::new(), String::new());
    for id in 0..6 {
        let bytes = if id == 3 { &picture[..300] } else { &picture[..] };
        tsv.push_str(&format!("{id}\t{}\n", BASE64_STANDARD.encode(bytes)));
        for (number, text) in ["图", "\u{13000} \u{13001}", "  "].iter().enumerate() {
            let text_id = 3 * id + number;
            let line = serde_json::json!({"text_id": text_id, "text": text, "image_ids": [id]});
            jsonl.push_str(&format!("{line}\n"));
        }
    }
    fs::write(path.join("x_imgs.tsv"), tsv).unwrap();
    fs::write(path.join("x_texts.jsonl"), jsonl).unwrap();
    let data = tiny::flag("train-data", &path.join("x_texts.jsonl"));
    let said = check(path, &[&data]);
    for part in [
        "18 of 18 pairs looked at: 6 pictures, 3 different captions",
        "are taken for negatives: add --dedup-batch",
        "6 texts hold nothing to read",
        "are [UNK]",
        "3 of 18 pictures cannot be read: replace them, or add --skip-bad-images (image 3",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = check(path, &[&data, "--dedup-batch", "--skip-bad-images"]);
    assert!(!said.contains("--dedup-batch") && said.contains("they are skipped"), "{said}");
    // Batches of shards cannot be arranged.
    let input = tiny::flag("input", &path.join("x_texts.jsonl"));
    run::succeed(["shard", &input, &tiny::flag("output", &path.join("tar"))]);
    let said = check(path, &[&tiny::flag("train-data", &path.join("tar/*.tar"))]);
    assert!(said.contains("make an LMDB of these shards"), "{said}");
}

#[test]
fn a_run_warns_before_it_starts() {
    let directory = tempfile::tempdir().unwrap();
    let more = ["--max-steps=2", "--warmup=50", "--context-length=4"];
    let log = run::succeed(tiny::train(directory.path(), &more));
    assert!(log.contains("WARNING") && log.contains("--warmup 50 is as long as the run"), "{log}");
    assert!(log.contains("raise --context-length"), "{log}");
}
