use std::fs;

use tempfile::TempDir;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval").join(name)
}

/// A folder with a copy of the good predictions, of which `damage` changes the lines.
fn damaged(damage: impl FnOnce(&mut Vec<String>)) -> (TempDir, PathBuf) {
    let text = fs::read_to_string(fixture("valid_predictions.jsonl")).unwrap();
    let mut lines = text.lines().map(str::to_owned).collect();
    damage(&mut lines);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("predictions.jsonl");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    (folder, path)
}

/// The report on a damaged prediction file, and whether the result was good.
fn report(damage: impl FnOnce(&mut Vec<String>)) -> (String, bool) {
    let (folder, submission) = damaged(damage);
    let output = folder.path().join("output.json");
    let reference = fixture("valid_texts.jsonl");
    let result = evaluate_to_file(Direction::TextToImage, &reference, &submission, &output);
    (fs::read_to_string(output).unwrap(), result.is_ok())
}

fn golden(name: &str) -> String {
    fs::read_to_string(fixture(name)).unwrap()
}

#[test]
fn good_reports_are_the_references_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output.json");
    for (direction, reference, submission, expected) in [
        (Direction::TextToImage, "valid_texts.jsonl", "valid_predictions.jsonl", "output_ir.json"),
        (
            Direction::ImageToText,
            "valid_texts.tr.jsonl",
            "valid_tr_predictions.jsonl",
            "output_tr.json",
        ),
    ] {
        evaluate_to_file(direction, &fixture(reference), &fixture(submission), &output).unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), golden(expected));
    }
}

#[test]
fn bad_reports_are_the_references_byte_for_byte() {
    let bad = |name: &str| golden(&format!("bad/{name}.output.json"));
    let first = "649163, 369792";

    let missing = report(|lines| lines.truncate(198));
    assert_eq!(missing, (bad("missing_text"), false));
    let wrong_k = report(|lines| lines[0] = lines[0].replace(", 711172]", "]"));
    assert_eq!(wrong_k, (bad("wrong_k"), false));
    let duplicate = report(|lines| lines[0] = lines[0].replace(first, "649163, 649163"));
    assert_eq!(duplicate, (bad("duplicate"), false));
    let not_json = report(|lines| lines[3] = "{oops".to_owned());
    assert_eq!(not_json, (bad("not_json"), false));
    let string = report(|lines| lines[0] = lines[0].replace(first, "\"649163\", 369792"));
    assert_eq!(string, (bad("string_image_id"), false));
    let no_text_id = report(|lines| lines[0] = lines[0].replace("\"text_id\": 4843, ", ""));
    assert_eq!(no_text_id, (bad("no_text_id"), false));
    let extra = report(|lines| {
        let line = lines[0].replace("4843", "1");
        lines.push(line);
    });
    assert_eq!(extra, (bad("extra_text"), true));
}

/// The reference fails on its own message here and reports an unbound variable of Python.
#[test]
fn text_ids_that_are_no_integers_are_named() {
    for (written, shown) in
        [("\"4843\"", "4843"), ("4843.0", "4843.0"), ("null", "None"), ("1e-5", "1e-05")]
    {
        let (found, good) = report(|lines| lines[0] = lines[0].replace("4843", written));
        let message = format!(
            "Found an invalid text_id {shown}, it should be an integer (not string), please check your schema"
        );
        assert_eq!(
            found,
            format!(
                "{{\"errorDetail\": \"{message}\", \"errorMsg\": \"{message}\", \"score\": 0, \"scoreJson\": {{}}, \"success\": false}}"
            )
        );
        assert!(!good);
    }
}

fn message(direction: Direction, reference: &str, submission: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (truth, predicted) = (folder.path().join("truth"), folder.path().join("predicted"));
    fs::write(&truth, reference).unwrap();
    fs::write(&predicted, submission).unwrap();
    evaluate(direction, &truth, &predicted).unwrap_err().to_string()
}

#[test]
fn messages_of_the_other_direction_name_the_other_side() {
    let reference = "{\"image_id\": 1, \"text_ids\": [1]}\n{\"image_id\": 7, \"text_ids\": []}";
    for (submission, expected) in [
        (
            "",
            "The following image_ids have no prediction in your submission, please check again: 1, 7",
        ),
        ("x", "Cannot parse this line into json object: x"),
        ("\n", "Cannot parse this line into json object: "),
        ("[1]", "There exists one line not containing image_id: [1]"),
        ("{\"text_id\": 1}", "There exists one line not containing image_id: {\"text_id\": 1}"),
        (
            "{\"image_id\": [1]}",
            "Found an invalid image_id [1], it should be an integer (not string), please check your schema",
        ),
        (
            " {\"image_id\": 1, \"é\": 2} \r\n",
            "There exists one line not containing the predicted text_ids: {\"image_id\": 1, \"é\": 2}",
        ),
        (
            "{\"image_id\": 1, \"text_ids\": 5}",
            "The text_ids field of image_id 1 is not a list, please check your schema",
        ),
        (
            "{\"image_id\": 1, \"text_ids\": [1]}",
            "Image_id 1 has wrong number of predicted text_ids! Require 10, but 1 founded.",
        ),
        (
            "{\"image_id\": 1, \"text_ids\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1.5]}",
            "Image_id 1 has an invalid predicted text_id 1.5 at rank 10, it should be an integer (not string), please check your schema",
        ),
        (
            "{\"image_id\": 1, \"text_ids\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]}",
            "Image_id 1 has duplicate topk texts in your prediction. Pleace check again!",
        ),
    ] {
        assert_eq!(message(Direction::ImageToText, reference, submission), expected);
    }
}

#[test]
fn bad_references_are_explained() {
    let run = |reference: &str| message(Direction::TextToImage, reference, "");
    assert!(run("").ends_with("is empty: there is nothing to score"));
    let good = "{\"text_id\": 1, \"image_ids\": [1]}";
    for (bad, reason) in [
        ("oops", "expected value"),
        ("", "EOF"),
        ("{\"image_ids\": [1]}", "no \"text_id\""),
        ("{\"text_id\": 2}", "no \"image_ids\""),
        ("{\"text_id\": 2.5, \"image_ids\": [1]}", "\"text_id\" is 2.5"),
        ("{\"text_id\": 2, \"image_ids\": 1}", "\"image_ids\" is 1"),
    ] {
        let found = run(&format!("{good}\n{bad}\n{good}"));
        assert!(found.contains("truth:2: the reference line is bad: "), "{found}");
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn missing_files_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output.json");
    let (truth, none) = (fixture("valid_texts.jsonl"), folder.path().join("none"));
    let run = |reference, submission| {
        let error = evaluate_to_file(Direction::TextToImage, reference, submission, &output);
        let report: Value = serde_json::from_slice(&fs::read(&output).unwrap()).unwrap();
        let error = error.unwrap_err().to_string();
        assert_eq!(report["errorMsg"], error);
        error
    };
    assert_eq!(run(&truth, &none), "The submission file is not found!");
    assert!(run(&truth, folder.path()).starts_with("cannot read the submission file"));
    assert!(run(&none, &truth).starts_with("cannot read the reference file"));
}

#[test]
fn unwritable_reports_are_errors() {
    let (truth, good) = (fixture("valid_texts.jsonl"), fixture("valid_predictions.jsonl"));
    let error = evaluate_to_file(
        Direction::TextToImage,
        &truth,
        &good,
        Path::new("/nonexistent/output.json"),
    );
    assert!(matches!(error, Err(EvaluationError::Report { .. })));
}

#[test]
fn reports_do_not_replace_inputs() {
    let (_folder, submission) = damaged(|_| ());
    let before = fs::read(&submission).unwrap();
    let reference = fixture("valid_texts.jsonl");
    let error = evaluate_to_file(Direction::TextToImage, &reference, &submission, &submission);
    assert!(matches!(error, Err(EvaluationError::Report { .. })));
    assert!(fs::read(&submission).unwrap() == before);
}

#[test]
fn queries_without_truth_miss_and_later_lines_replace_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (truth, predicted) = (folder.path().join("truth"), folder.path().join("predicted"));
    fs::write(
        &truth,
        "{\"text_id\": 1, \"image_ids\": [99]}\n{\"text_id\": 2, \"image_ids\": []}\n{\"text_id\": 1, \"image_ids\": [6, \"x\"]}",
    )
    .unwrap();
    let line = |id, first| {
        format!("{{\"text_id\": {id}, \"image_ids\": [{first}, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}\n")
    };
    fs::write(&predicted, line(1, 99) + &line(2, 1) + &line(1, 1)).unwrap();
    let scores = evaluate(Direction::TextToImage, &truth, &predicted).unwrap();
    assert_eq!((scores.r1, scores.r5, scores.r10), (0.0, 0.0, 50.0));
}
