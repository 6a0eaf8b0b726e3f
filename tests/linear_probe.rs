//! Linear probes as a user trains them.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    fs,
    path::{Path, PathBuf},
};

use golden::fixture;
use run::{fail, run};
use serde_json::{Value, json};
use tiny::{flag, towers, weights};

/// Features near one corner for each of three classes, and their labels.
fn write_split(directory: &Path, name: &str, rows: usize, seed: usize) -> (PathBuf, PathBuf) {
    let noise = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 2003.0 - 0.5;
    let (mut features, mut labels) = (String::new(), String::new());
    for row in 0..rows {
        let value = |c: usize| f64::from(u8::from(row % 3 == c)) + noise(row * 3 + c) * 0.8;
        let feature: Vec<f64> = (0..3).map(value).collect();
        features.push_str(&format!("{}\n", json!({"image_id": row, "feature": feature})));
        labels.push_str(&format!("{row}\tclass {}\n", row % 3));
    }
    let paths = (directory.join(format!("{name}.jsonl")), directory.join(format!("{name}.tsv")));
    fs::write(&paths.0, features).unwrap();
    fs::write(&paths.1, labels).unwrap();
    paths
}

fn arguments(directory: &Path) -> Vec<String> {
    let train = write_split(directory, "train", 120, 1);
    let test = write_split(directory, "test", 90, 2);
    vec![
        "linear-probe".to_string(),
        flag("train-data", &train.0),
        flag("train-labels", &train.1),
        flag("test-data", &test.0),
        flag("test-labels", &test.1),
    ]
}

#[test]
fn files_of_features_give_a_table_and_figures() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("probe.json");
    let mut args = arguments(directory.path());
    args.extend(["--shots=1,4,16".to_string(), "--trials=2".to_string(), flag("output", &output)]);
    let result = run(&args);
    assert_eq!(result.status.code(), Some(0), "{result:?}");
    let printed = String::from_utf8(result.stdout).unwrap();
    let names: Vec<_> =
        printed.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["shots", "1", "4", "16", "all"]);
    let report: Value = serde_json::from_slice(&fs::read(&output).unwrap()).unwrap();
    assert_eq!(report["classes"], json!(["class 0", "class 1", "class 2"]));
    let all = &report["all"];
    // The classes are apart but for noise below half their distance.
    assert!(all["top1"].as_f64().unwrap() > 0.95, "{all}");
    assert_eq!((all["images"].as_i64(), all["converged"].as_bool()), (Some(120), Some(true)));
    let few = report["few_shot"].as_array().unwrap();
    assert_eq!(
        few.iter().map(|few| few["shots"].as_i64().unwrap()).collect::<Vec<_>>(),
        [1, 4, 16]
    );
    assert!(few.iter().all(|few| few["trials"].as_array().unwrap().len() == 2));

    // The same seed gives the same figures.
    let before = fs::read(&output).unwrap();
    assert_eq!(String::from_utf8(run(&args).stdout).unwrap(), printed);
    assert!(fs::read(&output).unwrap() == before);
}

#[test]
fn folders_are_extracted_first() {
    let directory = tempfile::tempdir().unwrap();
    let folder = fixture("zeroshot/test");
    let mut args = vec![
        "linear-probe".to_string(),
        flag("train-data", &folder),
        flag("val-data", &folder),
        flag("test-data", &folder),
        flag("resume", &weights()),
    ];
    args.extend(towers(directory.path()));
    let result = run(&args);
    assert_eq!(result.status.code(), Some(0), "{result:?}");
    let printed = String::from_utf8(result.stdout).unwrap();
    // Nine pictures in sixteen dimensions, tested on what they were trained on.
    let last: Vec<_> = printed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!((last[0], last[1]), ("all", "100.00"), "{printed}");
}

#[test]
fn bad_input_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let base = arguments(directory.path());
    let output = path("out.json");
    fs::write(&output, "old").unwrap();
    fs::write(path("short.tsv"), "0\tclass 0\n").unwrap();
    fs::write(path("twice.tsv"), "0\tclass 0\n0\tclass 1\n").unwrap();
    fs::write(path("wide.jsonl"), "{\"image_id\": 0, \"feature\": [1, 2]}\n").unwrap();
    fs::write(path("nan.jsonl"), "{\"image_id\": 0, \"feature\": [1, NaN, 2]}\n").unwrap();
    fs::write(path("zero.jsonl"), "{\"image_id\": 0, \"feature\": [0, 0, 0]}\n").unwrap();
    fs::write(path("empty.jsonl"), "").unwrap();
    fs::write(path("one.jsonl"), "{\"image_id\": 0, \"feature\": [1, 2, 3]}\n").unwrap();
    fs::write(path("other.tsv"), "0\tclass 9\n").unwrap();
    let folder = fixture("zeroshot/test");
    fs::create_dir_all(path("hollow/cat")).unwrap();
    let test = |features: &str, labels: &str| {
        vec![flag("test-data", &path(features)), flag("test-labels", &path(labels))]
    };
    for (more, code, expected) in [
        (vec![flag("train-labels", &path("short.tsv"))], 1, "id 1 has a feature but no label"),
        (test("one.jsonl", "test.tsv"), 1, "id 1 has a label but no feature"),
        (
            vec![flag("train-labels", &path("twice.tsv"))],
            1,
            "twice.tsv:2: id 0 has a label already",
        ),
        (test("wide.jsonl", "short.tsv"), 1, "have 2 values, those of the training split 3"),
        (test("nan.jsonl", "short.tsv"), 1, "nan.jsonl"),
        (test("zero.jsonl", "short.tsv"), 1, "zero"),
        (test("empty.jsonl", "short.tsv"), 1, "no features"),
        (test("one.jsonl", "other.tsv"), 1, "class \"class 9\" of the test split"),
        (test("none.jsonl", "short.tsv"), 1, "none.jsonl"),
        (vec![flag("test-data", &folder)], 1, "--test-labels goes with a file of features"),
        (vec!["--shots=64".into()], 1, "class \"class 0\" has 40 pictures"),
        (vec!["--shots=0".into()], 2, "--shots"),
        (vec![flag("val-labels", &path("short.tsv"))], 2, "--val-data"),
        (vec![flag("output", &path("train.jsonl"))], 1, "would replace the input"),
    ] {
        let args: Vec<String> =
            base.iter().cloned().chain([flag("output", &output)]).chain(more).collect();
        let error = fail(&args, code);
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(fs::read(&output).unwrap(), b"old");
    }
    let unlabelled = ["linear-probe".to_string(), base[1].clone(), base[3].clone()];
    assert!(fail(unlabelled, 1).contains("name their classes by --train-labels"));
    let folders = |data: &Path| {
        ["linear-probe".to_string(), flag("train-data", data), flag("test-data", data)]
    };
    assert!(fail(folders(&folder), 1).contains("name the weights by --resume"));
    let error = fail(folders(&path("hollow")), 1);
    assert!(error.contains("cat has no pictures"), "{error}");
}
