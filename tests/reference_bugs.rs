//! What the Python program gets wrong in training, and is right here: one test for each of the
//! first nine entries of its list of bugs.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{collections::HashMap, fs, path::Path};

use cn_clip::model::checkpoint::Checkpoint;
use golden::{norm_error, without_gradient};
use run::succeed;

/// Trains with the recorded settings but for those given, and returns the log.
fn train(directory: &Path, more: &[&str]) -> String {
    succeed(tiny::train(directory, more))
}

fn lines<'a>(log: &'a str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(part)).collect()
}

/// The number after `name: ` in a log line.
fn number(line: &str, name: &str) -> f64 {
    let rest = line.split(&format!("{name}: ")).nth(1).unwrap();
    rest.split([' ', '|']).next().unwrap().parse().unwrap()
}

fn weights(directory: &Path, run: &str) -> HashMap<String, Vec<f32>> {
    let path = directory.join(run).join("checkpoints/epoch_latest.pt");
    let file = Checkpoint::open(path).unwrap();
    file.state_dict.iter().map(|(key, value)| (key.clone(), value.read().unwrap())).collect()
}

/// Largest difference of two runs, without what has no gradient.
fn difference(directory: &Path, a: &str, b: &str) -> f32 {
    let (a, b) = (weights(directory, a), weights(directory, b));
    let error = |(key, a): (&String, &Vec<f32>)| {
        let random = without_gradient(key, a.len());
        let rest = |values: &[f32]| [&values[..random.start], &values[random.end..]].concat();
        if rest(a).is_empty() { 0.0 } else { norm_error(&rest(&b[key]), &rest(a)) }
    };
    a.iter().map(error).fold(0.0, f32::max)
}

#[test]
fn bug_1_skip_scheduler_works_and_an_interval_of_minus_one_is_never() {
    let directory = tempfile::tempdir().unwrap();
    let more = ["--name=a", "--max-epochs=2", "--skip-scheduler", "--save-step-frequency=0"];
    let log = train(directory.path(), &more);
    let steps = lines(&log, "Global Steps");
    assert!(steps.len() == 8 && steps.iter().all(|line| number(line, "LR") == 1e-3), "{log}");
    let never = ["--valid-step-interval=-1", "--valid-epoch-interval=-1"];
    let log = train(directory.path(), &[&["--name=b", "--max-epochs=1"][..], &never].concat());
    assert!(lines(&log, "Validation Result").is_empty(), "{log}");
    let never = ["--valid-step-interval=0", "--valid-epoch-interval=0"];
    let log = train(directory.path(), &[&["--name=c", "--max-epochs=1"][..], &never].concat());
    assert!(lines(&log, "Validation Result").is_empty(), "{log}");
}

#[test]
fn bug_2_a_checkpoint_of_mid_epoch_does_not_count_its_epoch_as_finished() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    train(path, &["--name=whole", "--max-epochs=2", "--save-step-frequency=1"]);
    let middle = tiny::flag("resume", &path.join("whole/checkpoints/epoch_1_2.pt"));
    let log = train(path, &["--name=go", "--max-epochs=2", &middle]);
    let seen: Vec<f64> =
        lines(&log, "Global Steps").iter().map(|line| number(line, "Train Epoch")).collect();
    assert_eq!(seen, [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    assert_eq!(difference(path, "whole", "go"), 0.0);
}

#[test]
fn bug_3_a_run_that_is_continued_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let log = train(directory.path(), &["--name=a", "--max-epochs=1"]);
    assert!(lines(&log, "this run continues").is_empty(), "{log}");
    let log = train(directory.path(), &["--name=a", "--max-epochs=2"]);
    let said = lines(&log, "this run continues");
    assert!(said.len() == 1 && said[0].contains("WARNING") && said[0].contains("epoch_latest.pt"));
    let log = train(directory.path(), &["--name=a", "--max-epochs=1", "--no-auto-resume"]);
    assert_eq!(lines(&log, "Global Steps").len(), 4);
}

#[test]
fn bug_4_a_run_with_nothing_left_to_do_warns() {
    let directory = tempfile::tempdir().unwrap();
    train(directory.path(), &["--name=a", "--max-epochs=1"]);
    let log = train(directory.path(), &["--name=a", "--max-epochs=1"]);
    let said = lines(&log, "nothing to do");
    assert!(said.len() == 1 && said[0].contains("WARNING"), "{log}");
    assert!(said[0].contains("--max-epochs") && said[0].contains("--reset-data-offset"), "{log}");
}

#[test]
fn bug_5_a_step_interval_at_the_end_of_an_epoch_validates_once() {
    let directory = tempfile::tempdir().unwrap();
    // An epoch has four steps.
    let more = ["--name=a", "--max-epochs=2", "--valid-step-interval=2"];
    let log = train(directory.path(), &more);
    assert_eq!(lines(&log, "Validation Result").len(), 4, "{log}");
}

#[test]
fn bug_6_the_start_of_an_epoch_is_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = train(directory.path(), &["--name=a", "--max-epochs=2", "--devices=cpu,cpu"]);
    let said = lines(&log, "Start epoch");
    assert_eq!(said.len(), 2, "{log}");
    assert!(said[0].ends_with("Rank 0 | Start epoch 1") && said[1].ends_with("Start epoch 2"));
}

/// The same global batch of one rank and of two.
fn one_and_two(directory: &Path, more: &[&str]) -> f32 {
    train(directory, &[&["--name=one", "--max-epochs=2"][..], more].concat());
    let two = ["--name=two", "--max-epochs=2", "--devices=cpu,cpu", "--batch-size=2"];
    train(directory, &[&two[..], more].concat());
    difference(directory, "one", "two")
}

#[test]
fn bug_7_a_teacher_and_gathered_features_agree_on_the_order() {
    let directory = tempfile::tempdir().unwrap();
    let model = tiny::flag("teacher-model", &tiny::tiny_model(directory.path()));
    let teacher = tiny::flag("teacher-checkpoint", &tiny::weights());
    let resume = tiny::flag("resume", &tiny::weights());
    let begin = [&*resume, "--reset-optimizer", "--reset-data-offset"];
    let flags = [&*model, &teacher, "--distillation", "--kd_loss_weight=5", "--gather-with-grad"];
    let error = one_and_two(directory.path(), &[&begin[..], &flags].concat());
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn bug_8_the_gradient_does_not_shrink_with_the_number_of_ranks() {
    let directory = tempfile::tempdir().unwrap();
    let resume = tiny::flag("resume", &tiny::weights());
    let begin = [&*resume, "--reset-optimizer", "--reset-data-offset"];
    let error = one_and_two(directory.path(), &begin);
    assert!(error < 1e-4, "{error:e}");
    let norm = |run: &str| {
        let metrics = directory.path().join(run).join("metrics.jsonl");
        let text = fs::read_to_string(metrics).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        first["gradient_norm"].as_f64().unwrap()
    };
    assert!((norm("one") / norm("two") - 1.0).abs() < 1e-4);
}

#[test]
fn bug_9_left_over_batches_cost_nothing_and_do_not_move_the_schedule() {
    let directory = tempfile::tempdir().unwrap();
    // Four batches, three to a step: one is left over in each epoch.
    let log = train(directory.path(), &["--name=a", "--max-epochs=4", "--accum-freq=3"]);
    let steps = lines(&log, "Global Steps");
    assert_eq!(steps.len(), 4, "{log}");
    let rates: Vec<f64> = steps.iter().map(|line| number(line, "LR")).collect();
    assert_eq!(rates, [0.0005, 0.001, 0.001, 0.0005]);
}
