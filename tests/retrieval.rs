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
fn recall_is_that_of_the_evaluation_in_one_go() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("recall.json");
    let (images, texts) =
        (fixture("valid_imgs.img_feat.jsonl"), fixture("valid_texts.txt_feat.jsonl"));
    let score = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cn-clip"));
        command.arg("recall").arg("--image-feats").arg(&images).arg("--text_feats").arg(&texts);
        command.arg("--texts").arg(fixture("valid_texts.jsonl"));
        command.arg("--output").arg(&output).args(more).output().unwrap()
    };
    let report =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(&output).unwrap()).unwrap() };
    let plain = score(&[]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = stdout(&plain).lines().map(words).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1], ["text", "to", "image", "94.50", "98.50", "99.00", "97.33", "1.0", "200"]);
    assert_eq!(lines[2], ["image", "to", "text", "96.05", "97.37", "97.37", "96.93", "1.0", "76"]);
    let figures = report();
    for (direction, golden) in
        [("text_to_image", "output_ir.json"), ("image_to_text", "output_tr.json")]
    {
        let golden: serde_json::Value =
            serde_json::from_slice(&fs::read(fixture(golden)).unwrap()).unwrap();
        for key in ["r1", "r5", "r10", "mean_recall"] {
            assert_eq!(figures[direction][key], golden["scoreJson"][key], "{direction} {key}");
        }
        assert_eq!(figures[direction].get("intervals"), None);
    }

    // Blocks do not matter, nor does the order of the flags.
    let ci = score(&["--ci", "90", "--seed=5", "--eval-batch-size=7"]);
    let again = stdout(&score(&["--seed=5", "--ci=90%"])).to_owned();
    assert_eq!(stdout(&ci), again);
    assert_eq!(again.lines().count(), 5);
    let figures = report();
    assert_eq!(
        figures["bootstrap"],
        serde_json::json!({"level": 90.0, "samples": 1000, "seed": 5})
    );
    let r1 = &figures["text_to_image"];
    let ends: Vec<f64> = serde_json::from_value(r1["intervals"]["r1"].clone()).unwrap();
    assert!(ends[0] < 94.5 && ends[1] > 94.5 && ends[1] - ends[0] < 8.0, "{ends:?}");
    let wide = score(&["--ci"]);
    stdout(&wide);
    assert_eq!(report()["bootstrap"]["level"], 95.0);
    for bad in
        [&["--ci=0"][..], &["--ci=100"], &["--ci=x"], &["--seed=1"], &["--ci", "--samples=0"]]
    {
        failure(&score(bad), 2);
    }
}

#[test]
fn recall_names_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let feature =
        |key: &str, id: i32, values: &str| format!("{{\"{key}\": {id}, \"feature\": {values}}}\n");
    fs::write(path("i.jsonl"), feature("image_id", 1, "[1, 0]")).unwrap();
    fs::write(path("t.jsonl"), feature("text_id", 1, "[1, 0]")).unwrap();
    fs::write(path("a.jsonl"), "{\"text_id\": 1, \"image_ids\": [1]}\n").unwrap();
    let score = |images: &str, texts: &str, annotations: &str| {
        run([
            &"recall",
            &"--image-feats",
            &path(images),
            &"--text-feats",
            &path(texts),
            &"--texts",
            &path(annotations),
        ])
    };
    stdout(&score("i.jsonl", "t.jsonl", "a.jsonl"));
    let image = |values: &str| feature("image_id", 1, values);
    for (name, text, expected) in [
        ("i", image("[1, 0, 0]"), "queries have 2 values and candidates 3"),
        ("i", image("[1, NaN]"), "NaN"),
        ("i", image("[1, Infinity]"), "infinite"),
        ("i", image("[0, 0]"), "zero"),
        ("i", image("[1, 0]").repeat(2), "id 1 has been seen before"),
        ("i", feature("image_id", 2, "[1, 0]"), "image_id 1 of the annotations has no feature"),
        ("i", String::new(), "no features"),
        ("t", feature("text_id", 2, "[1, 0]"), "text_id 1 of the annotations has no feature"),
        ("t", image("[1, 0]"), "text_id"),
        ("a", String::new(), "nothing to score"),
        ("a", "{\"text_id\": 1, \"image_ids\": []}\n".to_owned(), "nothing to score"),
        ("a", "{\"text_id\": 1}\n".to_owned(), "bad_a.jsonl:1"),
    ] {
        let bad = format!("bad_{name}.jsonl");
        fs::write(path(&bad), text).unwrap();
        let file = |other: &str| if other == name { bad.clone() } else { format!("{other}.jsonl") };
        let output = score(&file("i"), &file("t"), &file("a"));
        assert!(failure(&output, 1).contains(expected), "{expected}: {output:?}");
    }
    let output = score("none.jsonl", "t.jsonl", "a.jsonl");
    assert!(failure(&output, 1).contains("none.jsonl"));
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
    // More than there are is as many as there are.
    let few =
        predict(&fixture("valid_imgs.img_feat.jsonl"), "1000", &folder.path().join("all.jsonl"));
    stdout(&few);
    let all = fs::read_to_string(folder.path().join("all.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(all.lines().next().unwrap()).unwrap();
    assert_eq!(first["image_ids"].as_array().unwrap().len(), 80);
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
