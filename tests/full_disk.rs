//! A disk without room: an error that names the file, and what was there before stays as it was.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path, process::Command};

use base64::{Engine, prelude::BASE64_STANDARD};
use disk::{fail_with_small_files, snapshot};
use golden::fixture;
use run::succeed;
use tempfile::TempDir;
use tiny::{flag, towers, train, weights};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn strings<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_string).to_vec()
}

#[test]
fn the_last_checkpoint_stays_whole() {
    let dir = directory();
    succeed(train(dir.path(), &["--name=a", "--max-steps=1"]));
    let checkpoints = dir.path().join("a/checkpoints");
    let before = snapshot(&checkpoints);
    assert!(before.contains_key(&checkpoints.join("epoch_latest.pt")));
    let full =
        |name: &str| fail_with_small_files(100, &train(dir.path(), &[name, "--max-steps=2"]));
    let error = full("--name=a");
    assert!(error.contains("checkpoints/epoch") && error.contains("too large"), "{error}");
    assert_eq!(error.lines().last().unwrap().matches("too large").count(), 1, "{error}");
    assert!(error.lines().last().unwrap().starts_with("error: "), "{error}");
    assert_eq!(snapshot(&checkpoints), before);
    // And it can be continued once there is room.
    assert!(succeed(train(dir.path(), &["--name=a", "--max-steps=2"])).contains("2/2"));
    // A run that has no checkpoint yet gets no half one.
    full("--name=b");
    assert!(snapshot(&dir.path().join("b/checkpoints")).is_empty());
}

#[test]
fn the_last_data_set_stays_whole() {
    let dir = directory();
    let picture = BASE64_STANDARD.encode(fs::read(fixture("preprocess/03_scene.jpg")).unwrap());
    let line = r#"{"text_id": 1, "text": "图", "image_ids": [1]}"#;
    fs::write(dir.path().join("x_imgs.tsv"), format!("1\t{picture}\n")).unwrap();
    fs::write(dir.path().join("x_texts.jsonl"), line).unwrap();
    let data = flag("data-dir", dir.path());
    let args = strings(["build-lmdb-dataset", &data, "--splits=x"]);
    succeed(&args);
    let many: String = (1..100).map(|id| format!("{id}\t{picture}\n")).collect();
    fs::write(dir.path().join("x_imgs.tsv"), many).unwrap();
    let before = snapshot(dir.path());
    let error = fail_with_small_files(200, &args);
    assert!(error.contains("lmdb"), "{error}");
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn the_last_output_of_every_command_stays_whole() {
    let dir = directory();
    let output = dir.path().join("out");
    fs::write(&output, "kept").unwrap();
    let annotations = dir.path().join("t.jsonl");
    fs::copy(fixture("eval/valid_texts.jsonl"), &annotations).unwrap();
    fs::write(dir.path().join("t.tr.jsonl"), "kept").unwrap();
    let [vision, text] = towers(dir.path());
    let picture = fixture("preprocess/01_gradient_rgb.png").display().to_string();
    let (images, texts) =
        (fixture("eval/valid_imgs.img_feat.jsonl"), fixture("eval/valid_texts.txt_feat.jsonl"));
    let before = snapshot(dir.path());
    for (args, named) in [
        (
            strings([
                "extract-features",
                "--extract-text-feats",
                &flag("text-data", &fixture("dataset/valid_texts.jsonl")),
                &flag("text-feat-output-path", &output),
                &flag("resume", &weights()),
                "--context-length=24",
                &vision,
                &text,
            ]),
            "out",
        ),
        (
            strings([
                "extract-features",
                "--extract-image-feats",
                &flag("image-data", &fixture("dataset/lmdb/valid/imgs")),
                &flag("image-feat-output-path", &output),
                &flag("resume", &weights()),
                "--context-length=24",
                &vision,
                &text,
            ]),
            "out",
        ),
        (
            strings([
                "make-topk-predictions",
                &flag("image-feats", &images),
                &flag("text-feats", &texts),
                &flag("output", &output),
            ]),
            "out",
        ),
        (strings(["preprocess", &picture, "--resolution=32", &flag("output", &output)]), "out"),
        (strings(["transform-ir-annotation-to-tr", &flag("input", &annotations)]), "t.tr.jsonl"),
    ] {
        let error = fail_with_small_files(1, &args);
        assert!(error.contains(&format!("{named}: ")), "{error}");
        assert!(error.contains("too large"), "{error}");
        assert_eq!(snapshot(dir.path()), before, "{args:?}");
    }
}

/// Runs the binary with standard output, or error, on a device that is full.
#[cfg(target_os = "linux")]
fn with_full(stream: u8, args: &[String]) -> (Option<i32>, String) {
    let script = format!("exec \"$@\" {stream}>/dev/full");
    let output = Command::new("bash")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cn-clip")])
        .args(args)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed_are_an_error() {
    let dir = directory();
    let [vision, text] = towers(dir.path());
    let picture = fixture("preprocess/01_gradient_rgb.png").display().to_string();
    let eval = |name: &str| fixture("eval").join(name).display().to_string();
    let report = dir.path().join("report.json").display().to_string();
    for args in [
        strings([
            "similarity",
            &picture,
            "--text=a",
            &flag("checkpoint", &weights()),
            &vision,
            &text,
        ]),
        strings(["tokenize", &flag("input", &fixture("dataset/train_texts.jsonl"))]),
        strings([
            "evaluation",
            &eval("valid_texts.jsonl"),
            &eval("valid_predictions.jsonl"),
            &report,
        ]),
    ] {
        let (code, error) = with_full(1, &args);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.starts_with("error: standard output: No space left"), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn messages_that_cannot_be_printed_change_nothing() {
    let dir = directory();
    assert_eq!(with_full(2, &train(dir.path(), &["--name=a", "--max-steps=1"])).0, Some(0));
    assert!(dir.path().join("a/checkpoints/epoch_latest.pt").is_file());
    let args = strings(["tokenize", &flag("input", Path::new("none.jsonl"))]);
    assert_eq!(with_full(2, &args).0, Some(1));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = directory();
    let mut args = strings(["similarity", "--text=a", &flag("checkpoint", &weights())]);
    args.extend(towers(dir.path()));
    args.push(fixture("preprocess/01_gradient_rgb.png").display().to_string());
    // The other end is closed before anything is printed.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_cn-clip"))
        .args(args)
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
