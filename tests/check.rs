//! `cn-clip check`, and its short form before a training run.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::path::Path;

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
    let said = check(path, &[&weights, "--lr=1e-2"]);
    assert!(said.contains("- weights are loaded"), "{said}");
    assert!(said.contains("! --lr 1e-2 is high for fine-tuning"), "{said}");
    // Nothing was trained, and nothing written.
    assert!(!path.join("train_clip").exists());
}

#[test]
fn a_run_warns_before_it_starts() {
    let directory = tempfile::tempdir().unwrap();
    let more = ["--max-steps=2", "--warmup=50", "--context-length=4"];
    let log = run::succeed(tiny::train(directory.path(), &more));
    assert!(log.contains("WARNING") && log.contains("--warmup 50 is as long as the run"), "{log}");
    assert!(log.contains("raise --context-length"), "{log}");
}
