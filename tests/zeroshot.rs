//! Zero-shot classification as a user runs it.

#![allow(clippy::unwrap_used)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path, path::PathBuf};

use golden::fixture;
use run::{fail, run};
use serde_json::Value;
use tiny::{flag, weights};

/// Arguments with the recorded model, pictures and labels, then `more`.
fn zeroshot(directory: &Path, more: &[&str]) -> Vec<String> {
    // The name of the image tower goes into the report.
    let model = directory.join("ViT-B-16.json");
    fs::rename(tiny::tiny_model(directory), &model).unwrap();
    let mut args = vec![
        "zeroshot-evaluation".to_string(),
        flag("datapath", &fixture("zeroshot/test")),
        flag("label-file", &fixture("zeroshot/label_cn.txt")),
        flag("save-dir", &directory.join("out")),
        flag("resume", &weights()),
        flag("vision-model", &model),
        flag("text-model", &model),
        "--img-batch-size=4".to_string(),
        "--num-workers=0".to_string(),
        "--precision=fp32".to_string(),
    ];
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

fn stdout(args: &[String]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The same but for the last digits of probabilities.
fn assert_close(found: &Value, expected: &Value) {
    let split = |report: &Value| {
        let mut report = report.as_object().unwrap().clone();
        (report.remove("predictions").unwrap(), report)
    };
    let ((found, other), (expected, golden)) = (split(found), split(expected));
    assert_eq!(other, golden);
    let rows = |predictions: &Value| -> Vec<Vec<f64>> {
        assert_eq!(predictions.as_array().unwrap().len(), 1);
        serde_json::from_value(predictions[0].clone()).unwrap()
    };
    let (found, expected) = (rows(&found), rows(&expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 2e-5, "{found:?} {expected:?}");
        }
    }
}

#[test]
fn reports_are_the_references() {
    let index = flag("index", &fixture("zeroshot/index.json"));
    for (dataset, more) in
        [("custom", None), ("food-101", None), ("eurosat_clip", Some(index.as_str()))]
    {
        let directory = tempfile::tempdir().unwrap();
        let mut flags = vec!["--dataset", dataset];
        flags.extend(more);
        let printed = stdout(&zeroshot(directory.path(), &flags));
        assert!(printed.starts_with("Result:\nzeroshot-top1: 0.5555555555555556\n"), "{printed}");
        assert!(printed.ends_with("\nFinished.\n"), "{printed}");
        let out = directory.path().join("out");
        let report = json(out.join(format!("{dataset}.json")));
        assert_close(&report, &json(fixture(&format!("zeroshot/{dataset}.json"))));

        let metrics = json(out.join(format!("{dataset}.metrics.json")));
        assert_eq!(metrics["top1"], 5.0 / 9.0);
        assert_eq!((metrics["top5"].as_f64(), metrics["images"].as_i64()), (Some(1.0), Some(9)));
        let classes = metrics["classes"].as_array().unwrap();
        let names: Vec<_> = classes.iter().map(|class| class["label"].as_str().unwrap()).collect();
        assert_eq!(names, ["飞机", "向日葵", "宫保鸡丁"]);
        let shares: Vec<f64> =
            classes.iter().map(|class| class["accuracy"].as_f64().unwrap()).collect();
        let mean = shares.iter().sum::<f64>() / 3.0;
        assert!((metrics["mean_per_class"].as_f64().unwrap() - mean).abs() < 1e-12);
        let confused = metrics["confusion"].as_array().unwrap();
        let count: i64 = confused.iter().map(|entry| entry[2].as_i64().unwrap()).sum();
        assert_eq!(count, 9);
        let picture = fs::read_to_string(out.join(format!("{dataset}.confusion.svg"))).unwrap();
        assert!(picture.contains("宫保鸡丁") && picture.ends_with("</svg>\n"));
    }
}

#[test]
fn class_vectors_are_kept_and_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("vectors");
    let kept = flag("prompt-cache", &cache);
    let args = zeroshot(directory.path(), &["--dataset=custom", &kept]);
    let first = stdout(&args);
    let report = directory.path().join("out/custom.json");
    let (before, vectors) = (fs::read(&report).unwrap(), disk::snapshot(&cache));
    assert_eq!(vectors.len(), 1);
    assert_eq!(stdout(&args), first);
    assert!(fs::read(&report).unwrap() == before && disk::snapshot(&cache) == vectors);

    // The vectors in the file are what classifies: with two of them swapped, so are the columns.
    let (path, bytes) = vectors.into_iter().next().unwrap();
    let size = bytes.len();
    let mut swapped = bytes.clone();
    let row = 16 * 4;
    swapped[size - 3 * row..size - 2 * row].copy_from_slice(&bytes[size - 2 * row..size - row]);
    swapped[size - 2 * row..size - row].copy_from_slice(&bytes[size - 3 * row..size - 2 * row]);
    fs::write(&path, swapped).unwrap();
    stdout(&args);
    assert!(fs::read(&report).unwrap() != before);
}

#[test]
fn labels_and_templates_of_ones_own() {
    let directory = tempfile::tempdir().unwrap();
    let templates = directory.path().join("mine.txt");
    fs::write(&templates, "一张{}的照片\n{}\n").unwrap();
    let templates = flag("templates", &templates);
    let args = zeroshot(directory.path(), &["--dataset=mine", &templates]);
    stdout(&args);
    let metrics = json(directory.path().join("out/mine.metrics.json"));
    assert_eq!(metrics["templates"], "mine");

    // Without a file of labels the folders name the classes.
    let args: Vec<String> =
        args.into_iter().filter(|arg| !arg.starts_with("--label-file")).collect();
    stdout(&args);
    let metrics = json(directory.path().join("out/mine.metrics.json"));
    assert_eq!(metrics["classes"][2]["label"], "2");
    let named: Vec<String> = args
        .into_iter()
        .chain(["--templates=kitti".to_string()])
        .chain([flag("labels", &fixture("zeroshot/label_cn.txt"))])
        .collect();
    stdout(&named);
    let metrics = json(directory.path().join("out/mine.metrics.json"));
    assert_eq!(
        (&metrics["templates"], &metrics["classes"][1]["label"]),
        (&"kitti".into(), &"向日葵".into())
    );
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (labels, templates) = (directory.path().join("labels.txt"), directory.path().join("t.txt"));
    let empty = directory.path().join("empty");
    fs::create_dir_all(empty.join("cat")).unwrap();
    fs::create_dir_all(empty.join("dog")).unwrap();
    fs::copy(fixture("zeroshot/test/0/im_1.png"), empty.join("cat/1.png")).unwrap();
    let bad_picture = directory.path().join("bad");
    fs::create_dir_all(bad_picture.join("cat")).unwrap();
    fs::write(bad_picture.join("cat/oops.png"), "no picture").unwrap();
    fs::write(&labels, "猫\n狗\n").unwrap();
    fs::write(&templates, "没有位置\n").unwrap();
    let base = zeroshot(directory.path(), &[]);
    for (more, code, expected) in [
        (vec![flag("label-file", &labels)], 1, "has 2 labels, but there are 3 class folders"),
        (vec![flag("datapath", &empty)], 1, "dog has no pictures"),
        (vec![flag("datapath", &directory.path().join("none"))], 1, "none"),
        (vec![flag("datapath", &bad_picture), flag("label-file", &labels)], 1, "1 class folders"),
        (vec![flag("templates", &templates)], 1, "t.txt:1: a template holds {} once"),
        (vec!["--templates=nothing".into()], 1, "--templates is one of aircraft"),
        (vec!["--dataset=a/b".into()], 1, "cannot be the name of a file"),
        (vec![flag("index", &labels)], 1, "labels.txt"),
        (vec!["--context-length=65".into()], 1, "between 2 and 64"),
        (vec!["--img-batch-size=0".into()], 2, "--img-batch-size"),
        (vec!["--precision=int8".into()], 2, "fp32, bf16, fp16 and int16"),
        (vec![flag("resume", &labels)], 1, "labels.txt"),
    ] {
        let args: Vec<String> = base.iter().cloned().chain(more).collect();
        let error = fail(&args, code);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let args: Vec<String> = base
        .iter()
        .filter(|arg| !arg.starts_with("--label-file"))
        .cloned()
        .chain([flag("datapath", &bad_picture)])
        .collect();
    let error = fail(&args, 1);
    assert!(error.contains("oops.png"), "{error}");
    let written = disk::snapshot(&directory.path().join("out"));
    assert!(written.keys().all(|path| path.starts_with(directory.path().join("out/prompt-cache"))));
}
