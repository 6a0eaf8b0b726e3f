//! Weights a training run begins with, and a teacher it follows.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{collections::HashMap, fs, path::Path};

use cn_clip::model::checkpoint::Checkpoint;
use golden::{fixture, norm_error, without_gradient};
use run::{fail, succeed};

fn arguments(directory: &Path, more: &[&str]) -> Vec<String> {
    tiny::train(directory, more)
}

fn weights(path: &Path) -> HashMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |(key, tensor): &(String, cn_clip::model::checkpoint::LazyTensor)| {
        (key.clone(), tensor.read().unwrap())
    };
    checkpoint.state_dict.iter().map(read).collect()
}

#[test]
fn towers_begin_with_weights_of_their_own_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = tiny::weights();
    let flags = [
        "--name=begin",
        "--max-steps=1",
        "--lr=0",
        &tiny::flag("clip-weight-path", &file),
        &tiny::flag("bert_weight_path", &file),
    ];
    succeed(arguments(directory.path(), &flags));
    let expected = weights(&file);
    let found = weights(&directory.path().join("begin/checkpoints/epoch1.pt"));
    for (key, values) in &found {
        let same = *values == expected[key];
        assert_eq!(same, key != "text_projection", "{key}");
    }
}

#[test]
fn initial_weights_that_do_not_fit_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let file = fixture("model/rn_tiny/checkpoint_fp16.pt");
    let flags = ["--name=x", "--max-steps=1", &tiny::flag("clip-weight-path", &file)];
    let error = fail(arguments(directory.path(), &flags), 1);
    for part in ["checkpoint_fp16.pt", "missing: visual.", "wrong shape: visual.conv1.weight"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let teacher = tiny::flag("teacher-checkpoint", &file);
    let model = tiny::flag("teacher-model", &tiny::tiny_model(directory.path()));
    let error = fail(arguments(directory.path(), &["--max-steps=1", &teacher, &model]), 1);
    assert!(error.contains("missing: visual."), "{error}");
    fail(arguments(directory.path(), &["--max-steps=1", &teacher]), 2);
}

#[test]
fn a_teacher_is_followed_by_one_device_as_by_two() {
    let directory = tempfile::tempdir().unwrap();
    let train = |name: &str, batch: usize, more: &[&str]| {
        let mut args = arguments(directory.path(), more);
        args.retain(|arg| !arg.starts_with("--batch-size"));
        args.extend([format!("--name={name}"), format!("--batch-size={batch}")]);
        // The recorded model of 32 pixels teaches the tiny one, whose features are narrower.
        let text = fs::read(fixture("model/rn_tiny/config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let path = directory.path().join("teacher.json");
        fs::write(&path, config["model_config"].to_string()).unwrap();
        args.push(tiny::flag("teacher-model", &path));
        let file = fixture("model/rn_tiny/checkpoint_fp16.pt");
        args.push(tiny::flag("teacher-checkpoint", &file));
        args.push(tiny::flag("resume", &tiny::weights()));
        args.extend(["--reset-optimizer", "--reset-data-offset", "--max-epochs=2"].map(Into::into));
        succeed(args);
        weights(&directory.path().join(name).join("checkpoints/epoch2.pt"))
    };
    let one = train("one", 4, &["--kd-loss-weight=2"]);
    let two = train("two", 2, &["--kd_loss_weight=2", "--devices=cpu,cpu", "--distillation"]);
    let without = train("without", 4, &["--kd-loss-weight=0"]);
    for (key, one) in &one {
        let random = without_gradient(key, one.len());
        let rest = |values: &[f32]| [&values[..random.start], &values[random.end..]].concat();
        if !rest(one).is_empty() {
            let error = norm_error(&rest(&two[key]), &rest(one));
            assert!(error < 1e-4, "{key}: {error:e}");
        }
    }
    assert!(norm_error(&without["visual.proj"], &one["visual.proj"]) > 1e-3);
    let metrics = fs::read_to_string(directory.path().join("one/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["distillation_loss"].as_f64()
        })
        .collect();
    assert_eq!(losses.len(), 8);
    assert!(losses.last() < losses.first(), "{losses:?}");
}
