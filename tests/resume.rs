//! A run that is stopped or killed at any step and resumed ends as the run that never stopped.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use cn_clip_model::checkpoint::Checkpoint;
use run::succeed;
use tiny::train;

const STEPS: usize = 40;

fn arguments(directory: &Path, name: &str) -> Vec<String> {
    let (name, steps) = (format!("--name={name}"), format!("--max-steps={STEPS}"));
    let more = [&*name, &steps, "--mask-ratio=0.5", "--use-augment", "--save-step-frequency=1"];
    let mut args = train(directory, &more);
    args.retain(|arg| !arg.starts_with("--val"));
    args
}

/// Starts a run and sends it `signal` when the log tells of step `step`; returns how it ended and
/// the steps that it did.
fn interrupted(args: &[String], step: usize, signal: &str) -> (ExitStatus, usize) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cn-clip"))
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(rest) = line.split("Global Steps: ").nth(1) else { continue };
        last = rest.split('/').next().unwrap().parse().unwrap();
        if last == step {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        }
    }
    (child.wait().unwrap(), last)
}

fn check_same(directory: &Path, one: &str, other: &str) {
    let open = |name: &str| {
        Checkpoint::open(directory.join(name).join("checkpoints/epoch_latest.pt")).unwrap()
    };
    let (one, other) = (open(one), open(other));
    assert_eq!((one.progress.step, other.progress.step), (STEPS as u64, STEPS as u64));
    for (key, tensor) in &one.state_dict {
        assert!(tensor.read().unwrap() == other.get(key).unwrap().read().unwrap(), "{key}");
    }
}

#[test]
fn stopped_by_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    succeed(arguments(directory.path(), "whole"));
    for (name, signal, step) in [("interrupted", "-INT", 3), ("terminated", "-TERM", 6)] {
        let args = arguments(directory.path(), name);
        let (status, done) = interrupted(&args, step, signal);
        assert_eq!(status.code(), Some(0), "{name}");
        assert!(done < STEPS, "{name} ended at step {done}");
        let log = succeed(&args);
        assert!(log.contains(&format!("Global Steps: {}/{STEPS}", done + 1)), "{log}");
        check_same(directory.path(), "whole", name);
    }
}

#[test]
fn killed() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, devices) in [("one", "--device=cpu"), ("two", "--devices=cpu,cpu")] {
        let (whole, killed) = (format!("{kind}-whole"), format!("{kind}-killed"));
        let arguments = |name: &str| {
            let mut args = arguments(directory.path(), name);
            args.push(devices.to_string());
            args
        };
        succeed(arguments(&whole));
        let args = arguments(&killed);
        // Twice, in different places.
        for step in [4, 9] {
            let (status, _) = interrupted(&args, step, "-KILL");
            assert_eq!(status.code(), None);
        }
        succeed(&args);
        check_same(directory.path(), &whole, &killed);
    }
}
