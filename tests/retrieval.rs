//! Retrieval commands as a user runs them: predictions, evaluation, annotations.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name)
}

fn run<const N: usize>(args: [&dyn AsRef<std::ffi::OsStr>; N]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cn-clip"));
    command.args(args.map(AsRef::as_ref)).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

/// Standard error of a run that must end with `code` and print no result.
fn failure(output: &Output, code: i32) -> &str {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn predictions_and_their_evaluation_are_the_references() {
    let folder = tempfile::tempdir().unwrap();
    let (predictions, report) = (folder.path().join("p.jsonl"), folder.path().join("out.json"));
    let (images, texts) =
        (fixture("valid_imgs.img_feat.jsonl"), fixture("valid_texts.txt_feat.jsonl"));
    for (suffix, reference, expected, golden, scores) in [
        (
            "",
            "valid_texts.jsonl",
            "valid_predictions.jsonl",
            "output_ir.json",
            "R@1 94.50  R@5 98.50  R@10 99.00  mean recall 97.33\n",
        ),
        (
            "-tr",
            "valid_texts.tr.jsonl",
            "valid_tr_predictions.jsonl",
            "output_tr.json",
            "R@1 96.05  R@5 97.37  R@10 97.37  mean recall 96.93\n",
        ),
    ] {
        let command = format!("make-topk-predictions{suffix}");
        let ranked = run([
            &command,
            &"--image-feats",
            &images,
            &"--text_feats",
            &texts,
            &"--output",
            &predictions,
            &"--device",
            &"cpu",
        ]);
        assert_eq!(stdout(&ranked), "");
        assert!(fs::read(&predictions).unwrap() == fs::read(fixture(expected)).unwrap());

        let command = format!("evaluation{suffix}");
        let evaluated = run([&command, &fixture(reference), &predictions, &report]);
        assert_eq!(stdout(&evaluated), scores);
        assert_eq!(fs::read(&report).unwrap(), fs::read(fixture(golden)).unwrap());
    }
}

#[test]
fn top_k_and_batch_size_are_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let predictions = folder.path().join("p.jsonl");
    let ranked = run([
        &"make-topk-predictions-tr",
        &"--image_feats",
        &fixture("valid_imgs.img_feat.jsonl"),
        &"--text-feats",
        &fixture("valid_texts.txt_feat.jsonl"),
        &"--top-k=5",
        &"--eval_batch_size=7",
        &"--output",
        &predictions,
    ]);
    stdout(&ranked);
    let expected = fs::read(fixture("valid_tr_predictions.k5_bs7.jsonl")).unwrap();
    assert!(fs::read(&predictions).unwrap() == expected);
}

#[test]
fn bad_features_fail_and_keep_the_old_predictions() {
    let folder = tempfile::tempdir().unwrap();
    let (bad, predictions) = (folder.path().join("bad.jsonl"), folder.path().join("p.jsonl"));
    fs::write(&predictions, "old").unwrap();
    let good = fixture("valid_texts.txt_feat.jsonl");
    let predict = |images: &Path, k: &str, output: &Path| {
        run([
            &"make-topk-predictions",
            &"--image-feats",
            &images,
            &"--text-feats",
            &good,
            &"--output",
            &output,
            &"--top-k",
            &k,
        ])
    };
    for (text, expected) in [
        (
            "{\"image_id\": 1, \"feature\": [0.5, NaN]}",
            "bad.jsonl:1: value 1 of the feature is NaN",
        ),
        ("{\"image_id\": 1, \"feature\": [0.5, 1]}", "values and candidates 2"),
        ("{\"text_id\": 1, \"feature\": [0.5, 1]}", "bad.jsonl:1: no \"image_id\""),
        ("", "bad.jsonl: no features"),
    ] {
        fs::write(&bad, text).unwrap();
        let output = predict(&bad, "10", &predictions);
        assert!(failure(&output, 1).contains(expected), "{output:?}");
    }
    let output = predict(&folder.path().join("none.jsonl"), "10", &predictions);
    assert!(failure(&output, 1).contains("none.jsonl"), "{output:?}");
    let output = predict(&bad, "0", &predictions);
    assert!(failure(&output, 2).contains("--top-k"), "{output:?}");
    let output = predict(&bad, "10", &bad);
    assert!(failure(&output, 1).contains("would replace the input"), "{output:?}");
    assert_eq!(fs::read_to_string(&predictions).unwrap(), "old");
}

#[test]
fn refused_predictions_leave_the_references_report_and_exit_1() {
    let folder = tempfile::tempdir().unwrap();
    let (predictions, report) = (folder.path().join("p.jsonl"), folder.path().join("out.json"));
    fs::write(&predictions, "{oops\n").unwrap();
    let evaluate =
        |report: &Path| run([&"evaluation", &fixture("valid_texts.jsonl"), &predictions, &report]);
    let output = evaluate(&report);
    let message = "Cannot parse this line into json object: {oops";
    assert!(failure(&output, 1).contains(message), "{output:?}");
    let expected = fs::read(fixture("bad/not_json.output.json")).unwrap();
    assert_eq!(fs::read(&report).unwrap(), expected);
    let output = evaluate(&folder.path().join("none/out.json"));
    assert!(failure(&output, 1).contains("cannot write the report"), "{output:?}");
}

#[test]
fn annotations_turn_around() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("t.jsonl");
    fs::copy(fixture("valid_texts.jsonl"), &input).unwrap();
    let command = "transform-ir-annotation-to-tr";
    let output = run([&command, &"--input", &input]);
    let path = folder.path().join("t.tr.jsonl");
    assert_eq!(stdout(&output), format!("{}\n", path.display()));
    let expected = fs::read(fixture("valid_texts.tr.jsonl")).unwrap();
    assert!(fs::read(path).unwrap() == expected);

    fs::write(&input, "{\"text_id\": 1}").unwrap();
    let output = run([&command, &"--input", &input]);
    assert!(failure(&output, 1).contains("t.jsonl:1: missing field `image_ids`"), "{output:?}");
}
