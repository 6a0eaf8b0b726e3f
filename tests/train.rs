//! The training runs that were recorded of the Python program, done by the binary.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path};

use cn_clip_model::checkpoint::Checkpoint;
use golden::{Golden, fixture, norm_error};
use run::{fail, succeed};
use tiny::train as arguments;

/// Parameters of a finished run may differ by this much.
const TOLERANCE: f32 = 1e-3;

fn init() -> String {
    format!("--resume={}", tiny::weights().display())
}

fn compare(checkpoint: &Path, recorded: &str) {
    let golden = Golden::open(recorded);
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let mut compared = 0;
    for (key, tensor) in &checkpoint.state_dict {
        let found = [format!("module.{key}"), key.clone()]
            .iter()
            .find_map(|name| golden.cut(name, &tensor.read().unwrap()));
        let Some((mut got, mut expected)) = found else { continue };
        let noise = golden::without_gradient(key, got.len());
        got.drain(noise.clone());
        expected.drain(noise);
        if got.is_empty() {
            continue;
        }
        let error = norm_error(&got, &expected);
        assert!(error <= TOLERANCE, "{key}: {error:e}");
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}

/// The numbers of the log lines that have this text.
fn numbers(log: &str, line: &str, name: &str) -> Vec<f64> {
    log.lines()
        .filter(|text| text.contains(line))
        .filter_map(|text| {
            let rest = text.split(&format!("{name}: ")).nth(1)?;
            rest.split([' ', '|']).next()?.parse().ok()
        })
        .collect()
}

fn check_log(ours: &str, recorded: &str) {
    let theirs = fs::read_to_string(fixture(recorded)).unwrap();
    for (line, names) in [
        ("Global Steps", vec!["Loss", "Image2Text Acc", "Text2Image Acc", "LR", "logit_scale"]),
        ("Validation Result", vec!["Valid Loss", "Image2Text Acc", "Text2Image Acc"]),
    ] {
        for name in names {
            let got = numbers(ours, line, name);
            let mut expected = numbers(&theirs, line, name);
            if line == "Validation Result" {
                // Where a step interval meets the end of an epoch the Python program validates
                // twice.
                expected.dedup();
                let mut got = got.clone();
                got.dedup();
                assert_eq!(got.len(), expected.len(), "{line} {name}");
                continue;
            }
            assert_eq!(got.len(), expected.len(), "{line} {name}");
            for (got, expected) in got.iter().zip(&expected) {
                assert!(
                    (got - expected).abs() < 2e-4 * expected.abs().max(1.0),
                    "{name} {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn two_epochs_and_a_resumed_third_end_with_the_recorded_parameters() {
    let directory = tempfile::tempdir().unwrap();
    let resume = init();
    let log = succeed(arguments(
        directory.path(),
        &[
            "--name=run",
            &resume,
            "--reset-optimizer",
            "--reset-data-offset",
            "--max-epochs=2",
            "--save-step-frequency=2",
        ],
    ));
    check_log(&log, "train_run/run.out.0.txt");
    let checkpoints = directory.path().join("run/checkpoints");
    for name in
        ["epoch1.pt", "epoch2.pt", "epoch_1_2.pt", "epoch_1_4.pt", "epoch_2_6.pt", "epoch_2_8.pt"]
    {
        assert!(checkpoints.join(name).is_file(), "{name}");
    }
    // The third epoch continues by itself, because the name is in use.
    let log = succeed(arguments(directory.path(), &["--name=run", "--max-epochs=3"]));
    assert!(log.contains("this run continues"), "{log}");
    assert!(log.contains("=> optimizer state is restored from the checkpoint"), "{log}");
    check_log(&log, "train_run/run.out.1.txt");
    compare(&checkpoints.join("epoch3.pt"), "train_run/run_final.safetensors");
    let last = Checkpoint::open(checkpoints.join("epoch_latest.pt")).unwrap();
    assert_eq!((last.progress.epoch, last.progress.step), (3, 12));
    assert_eq!(last.progress.name, "run");
    // Logs are where and what users of the Python program expect.
    let names: Vec<String> = fs::read_dir(directory.path().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("out_") && name.ends_with(".log")));
    let params = names.iter().find(|name| name.starts_with("params_")).unwrap();
    let params = fs::read_to_string(directory.path().join("run").join(params)).unwrap();
    for line in ["batch_size: 4", "eps: 1e-06", "freeze_vision: False", "lr: 0.001", "name: run"] {
        assert!(params.lines().any(|found| found == line), "{line} not in {params}");
    }
}

#[test]
fn two_devices_end_with_the_recorded_parameters_too_and_one_continues_their_run() {
    let directory = tempfile::tempdir().unwrap();
    let batch = |size: usize, more: &[&str]| {
        let mut args = arguments(directory.path(), more);
        args.retain(|arg| !arg.starts_with("--batch-size"));
        args.push(format!("--batch-size={size}"));
        args
    };
    let resume = init();
    let first = ["--name=two", &resume, "--reset-optimizer", "--reset-data-offset"];
    let more = ["--max-epochs=2", "--devices=cpu,cpu", "--save-step-frequency=1"];
    let log = succeed(batch(2, &[&first[..], &more, &["--keep-checkpoints=3"]].concat()));
    assert!(log.contains("world_size: 2") && log.contains("Use cpu,cpu for training"), "{log}");
    check_log(&log, "train_run/run.out.0.txt");
    let checkpoints = directory.path().join("two/checkpoints");
    let mut names: Vec<String> = fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["epoch2.pt", "epoch_2_7.pt", "epoch_2_8.pt", "epoch_latest.pt"]);
    // One device takes over in the middle of the second epoch, two train the third.
    let middle = tiny::flag("resume", &checkpoints.join("epoch_2_7.pt"));
    succeed(batch(4, &["--name=one", &middle, "--max-epochs=2"]));
    succeed(batch(2, &["--name=one", "--max-epochs=3", "--devices=cpu,cpu"]));
    let last = directory.path().join("one/checkpoints/epoch3.pt");
    compare(&last, "train_run/run_final.safetensors");
}

#[test]
fn reduced_precision_trains_and_is_said_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let losses = |name: &str, more: &[&str]| {
        let name = format!("--name={name}");
        let resume = init();
        let flags = [&name, &*resume, "--reset-optimizer", "--reset-data-offset", "--max-epochs=2"];
        let log = succeed(arguments(directory.path(), &[&flags[..], more].concat()));
        (numbers(&log, "Global Steps", "Loss"), log)
    };
    let (expected, log) = losses("amp", &[]);
    assert!(
        log.contains("precision: amp") && log.contains("Precision amp is fp32 on cpu"),
        "{log}"
    );
    for precision in ["bf16", "fp16"] {
        let flag = format!("--precision={precision}");
        let (got, log) = losses(precision, &[&flag]);
        assert!(log.contains(&format!("precision: {precision}")), "{log}");
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 5e-2 * expected, "{precision} {got} {expected}");
        }
        assert_ne!(got, expected, "{precision}");
    }
    let checkpoint = directory.path().join("fp16/checkpoints/epoch2.pt");
    let progress = Checkpoint::open(checkpoint).unwrap().progress;
    assert_eq!(progress.loss_scale, Some((65536, 8)));
}

#[test]
fn numbers_of_a_run_are_written_for_other_programs() {
    let directory = tempfile::tempdir().unwrap();
    succeed(arguments(directory.path(), &["--name=run", "--max-epochs=1", "--valid-recall"]));
    let run = directory.path().join("run");
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert_eq!((of("train").len(), of("valid").len()), (4, 2));
    let mut positive =
        vec!["loss", "lr", "logit_scale", "gradient_norm", "pairs_per_second", "batch_seconds"];
    // The one system that tells the memory of a process in a file.
    if cfg!(target_os = "linux") {
        positive.push("memory_mib");
    }
    for name in positive {
        assert!(of("train").iter().all(|line| line[name].as_f64().unwrap() > 0.0), "{name}");
    }
    for name in ["text_to_image_r1", "text_to_image_r10", "image_to_text_r5"] {
        let share = |line: &&serde_json::Value| line[name].as_f64().unwrap();
        assert!(of("valid").iter().all(|line| (0.0..=100.0).contains(&share(line))), "{name}");
    }
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    for axis in [
        "Validation at step 4",
        "<th scope=\"col\">R@10</th>",
        "Loss",
        "Accuracy within the batch",
        "Recall over the validation split",
        "Learning rate",
        "Logit scale",
        "Norm of the gradient",
        "Pairs per second",
        "Memory",
    ] {
        assert!(page.contains(axis), "{axis}");
    }
    let events = fs::read_dir(&run).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("events.out.tfevents.")
    });
    assert_eq!(events.count(), 1);
}

#[test]
fn the_official_training_file_continues_to_the_recorded_third_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let packed = fs::File::open(fixture("train_run/epoch2_with_optimizer.pt.gz")).unwrap();
    let file = directory.path().join("epoch2.pt");
    let mut out = fs::File::create(&file).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    let resume = format!("--resume={}", file.display());
    let log = succeed(arguments(directory.path(), &["--name=go", &resume, "--max-epochs=3"]));
    check_log(&log, "train_run/run.out.1.txt");
    let last = directory.path().join("go/checkpoints/epoch3.pt");
    compare(&last, "train_run/run_final.safetensors");
}

#[test]
fn a_frozen_image_tower_ends_with_the_recorded_parameters() {
    let directory = tempfile::tempdir().unwrap();
    let resume = init();
    let log = succeed(arguments(
        directory.path(),
        &[
            "--name=frz",
            &resume,
            "--reset-optimizer",
            "--reset-data-offset",
            "--max-steps=3",
            "--freeze-vision",
        ],
    ));
    assert!(log.contains("The visual encoder is freezed during training."), "{log}");
    assert!(log.contains("has reached max_steps 3"), "{log}");
    check_log(&log, "train_run/frz.out.0.txt");
    let checkpoints = directory.path().join("frz/checkpoints");
    compare(&checkpoints.join("epoch1.pt"), "train_run/frz_final.safetensors");
    let saved = Checkpoint::open(checkpoints.join("epoch_latest.pt")).unwrap();
    let sizes = saved.optimizer.unwrap().group_sizes;
    assert!(sizes.iter().sum::<usize>() < 71, "frozen parameters have no optimizer state");
    // It can be continued.
    let more = ["--name=frz", "--max-epochs=2", "--freeze-vision"];
    succeed(arguments(directory.path(), &more));
}

#[test]
fn a_run_stopped_in_mid_epoch_is_continued_there() {
    let directory = tempfile::tempdir().unwrap();
    let resume = init();
    let fresh = [&resume, "--reset-optimizer", "--reset-data-offset", "--max-epochs=2"];
    let whole: Vec<&str> = ["--name=whole"].into_iter().chain(fresh).collect();
    succeed(arguments(directory.path(), &whole));
    let saved: Vec<&str> =
        ["--name=cut", "--save-step-frequency=3"].into_iter().chain(fresh).collect();
    succeed(arguments(directory.path(), &saved));
    let middle = directory.path().join("cut/checkpoints/epoch_1_3.pt");
    let resume = format!("--resume={}", middle.display());
    let log = succeed(arguments(directory.path(), &["--name=rest", &resume, "--max-epochs=2"]));
    assert_eq!(numbers(&log, "Global Steps", "Loss").len(), 5, "{log}");
    let read = |name: &str| {
        Checkpoint::open(directory.path().join(name).join("checkpoints/epoch2.pt")).unwrap()
    };
    let (whole, rest) = (read("whole"), read("rest"));
    for (key, tensor) in &whole.state_dict {
        assert_eq!(tensor.read().unwrap(), rest.get(key).unwrap().read().unwrap(), "{key}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let directory = tempfile::tempdir().unwrap();
    let weights = |name: &str, seed: &str| {
        let (flag, seed) = (format!("--name={name}"), format!("--seed={seed}"));
        let more = [&*flag, &seed, "--max-steps=2", "--mask-ratio=0.5", "--use-augment"];
        succeed(arguments(directory.path(), &more));
        let file = directory.path().join(name).join("checkpoints/epoch_latest.pt");
        Checkpoint::open(file).unwrap().get("visual.proj").unwrap().read().unwrap()
    };
    assert_eq!(weights("a", "1"), weights("b", "1"));
    assert_ne!(weights("a2", "1"), weights("c", "2"));
}

#[test]
fn nothing_left_to_do_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let more = ["--name=x", "--max-steps=1", "--no-auto-resume"];
    succeed(arguments(directory.path(), &more));
    let log = succeed(arguments(directory.path(), &["--name=x", "--max-steps=1"]));
    assert!(log.contains("nothing to do"), "{log}");
    let none = fail(arguments(directory.path(), &["--name=y", "--resume=none.pt"]), 1);
    assert!(none.contains("none.pt"), "{none}");
}

#[test]
fn learning_rates_follow_the_flags() {
    let directory = tempfile::tempdir().unwrap();
    let rates = |name: &str, flags: &[&str]| {
        let name = format!("--name={name}");
        let more: Vec<&str> = [&*name, "--max-steps=4"].iter().chain(flags).copied().collect();
        numbers(&succeed(arguments(directory.path(), &more)), "Global Steps", "LR")
    };
    assert_eq!(rates("cosine", &[]), [5e-4, 1e-3, 1e-3, 5e-4]);
    assert_eq!(rates("linear", &["--lr-scheduler=linear"]), [5e-4, 1e-3, 1e-3, 5e-4]);
    assert_eq!(rates("constant", &["--lr-scheduler=constant"]), [5e-4, 1e-3, 1e-3, 1e-3]);
    assert_eq!(rates("skip", &["--skip-scheduler"]), [1e-3; 4]);
}

#[test]
fn a_frozen_text_tower_stays_and_its_run_can_be_continued() {
    let directory = tempfile::tempdir().unwrap();
    let resume = init();
    let fresh = ["--reset-optimizer", "--reset-data-offset"];
    let frozen = ["--name=lock", &resume, "--freeze-text", "--max-steps=2", fresh[0], fresh[1]];
    let log = succeed(arguments(directory.path(), &frozen));
    assert!(log.contains("The text encoder is freezed during training."), "{log}");
    let before = Checkpoint::open(tiny::weights()).unwrap();
    let file = directory.path().join("lock/checkpoints/epoch_latest.pt");
    let after = Checkpoint::open(&file).unwrap();
    for (key, tensor) in &after.state_dict {
        let same = before.get(key).unwrap().read().unwrap() == tensor.read().unwrap();
        let text = key.starts_with("bert.") || key == "text_projection";
        // The gradient of key biases is zero but for rounding, and so may be their step.
        assert!(same == text || key.ends_with("in_proj_bias"), "{key}");
    }
    succeed(arguments(directory.path(), &["--name=lock", "--freeze-text", "--max-steps=3"]));
    let both = ["--name=none", "--freeze-text", "--freeze-vision"];
    assert!(fail(arguments(directory.path(), &both), 1).contains("--freeze-text"));
}

#[test]
fn checkpointing_clipping_and_unmasked_tuning_run_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let losses = |name: &str, flags: &[&str]| {
        let name = format!("--name={name}");
        let more: Vec<&str> = [&*name, "--max-epochs=2"].iter().chain(flags).copied().collect();
        numbers(&succeed(arguments(directory.path(), &more)), "Global Steps", "Loss")
    };
    let plain = losses("plain", &["--mask-ratio=0.5"]);
    let checkpointed = losses("checkpointed", &["--mask-ratio=0.5", "--grad-checkpointing"]);
    assert_eq!(checkpointed.len(), 8);
    // Rounding, and the last printed digit.
    assert!(checkpointed.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5));
    let unmasked = losses("unmasked", &["--mask-ratio=0.5", "--flip-unmask-epochs=1"]);
    assert_eq!(unmasked[..4], plain[..4]);
    assert_ne!(unmasked[4..], plain[4..]);
    let clipped = losses("clipped", &["--mask-ratio=0.5", "--clip-grad-norm=1e-6"]);
    assert_eq!(clipped[0], plain[0]);
    assert_ne!(clipped[1..], plain[1..]);
    // The scale begins at 1 / 0.07.
    let scale = ["--logit-scale-max=10", "--max-steps=1", "--name=scale"];
    let log = succeed(arguments(directory.path(), &scale));
    assert_eq!(numbers(&log, "Global Steps", "logit_scale"), [2.303]);
}

#[test]
fn exclusive_batches_do_as_many_steps_as_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = |name: &str, flags: &[&str]| {
        let name = format!("--name={name}");
        let more: Vec<&str> =
            [&*name, "--exclusive-batches"].iter().chain(flags).copied().collect();
        arguments(directory.path(), &more)
    };
    let steps = succeed(log("steps", &["--max-steps=13"]));
    assert!(steps.contains("Global Steps: 13/13"), "{steps}");
    assert!(steps.contains("epoch_latest.pt"), "{steps}");
}
