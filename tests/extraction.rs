//! `extract-features` as a user runs it: inputs, forms, bad pictures, continuing.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use cn_clip::eval::features::{Features, Modality};
use golden::fixture;
use run::{fail, succeed};
use tiny::{flag, towers, weights};

/// Arguments of an extraction by the recorded weights.
fn extract(directory: &Path, more: &[String]) -> Vec<String> {
    let mut args = vec!["extract-features".to_string(), "--context-length=24".to_string()];
    args.push(flag("resume", &weights()));
    args.extend(towers(directory));
    args.extend_from_slice(more);
    args
}

fn images(directory: &Path, data: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let mut args = extract(directory, &["--extract-image-feats".to_string()]);
    args.extend([flag("image-data", data), flag("image-feat-output-path", output)]);
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

fn texts(directory: &Path, data: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let mut args = extract(directory, &["--extract-text-feats".to_string()]);
    args.extend([flag("text-data", data), flag("text-feat-output-path", output)]);
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}

/// Runs with standard input and returns standard error.
fn with_input(args: Vec<String>, input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cn-clip"))
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    errors
}

/// The largest difference between features of the same ids.
fn difference(left: &Features, right: &Features) -> f32 {
    assert_eq!(left.rows(), right.rows());
    let mut worst = 0.0_f32;
    for (row, id) in left.ids().iter().enumerate() {
        let other = right.ids().iter().position(|other| other == id).unwrap();
        for (a, b) in left.row(row).iter().zip(right.row(other)) {
            worst = worst.max((a - b).abs());
        }
    }
    worst
}

#[test]
fn every_form_has_the_references_features() {
    let dir = tempfile::tempdir().unwrap();
    let golden = fixture("extract/valid_imgs.img_feat.jsonl");
    let golden = Features::read(&golden, Modality::Image).unwrap();
    let data = fixture("dataset/lmdb/valid/imgs");
    let mut first: Option<Features> = None;
    for form in ["jsonl", "npy", "safetensors", "parquet"] {
        let output = dir.path().join(format!("i.{form}"));
        succeed(images(dir.path(), &data, &output, &["--img-batch-size=5"]));
        let features = Features::read(&output, Modality::Image).unwrap();
        assert!(difference(&features, &golden) < 2e-6, "{form}");
        assert_eq!(*first.get_or_insert_with(|| features.clone()), features, "{form}");
    }
    // Named by the flag.
    let (data, copy) = (fixture("dataset/valid_texts.jsonl"), dir.path().join("v_texts.jsonl"));
    fs::copy(data, &copy).unwrap();
    let mut args = extract(dir.path(), &["--extract-text-feats".to_string()]);
    args.extend([flag("text-data", &copy), "--format=parquet".to_string()]);
    succeed(args);
    let features =
        Features::read(&dir.path().join("v_texts.txt_feat.parquet"), Modality::Text).unwrap();
    let golden = fixture("extract/valid_texts.txt_feat.jsonl");
    assert!(difference(&features, &Features::read(&golden, Modality::Text).unwrap()) < 2e-6);
    let error = fail(images(dir.path(), &copy, Path::new("x.npy"), &["--format=jsonl"]), 1);
    assert!(error.contains("--format jsonl, but x.npy ends in .npy"), "{error}");
}

#[test]
fn every_input_has_the_same_features() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    succeed(images(dir.path(), &fixture("dataset/valid_imgs.tsv"), &at("tsv.jsonl"), &[]));
    let tsv = Features::read(&at("tsv.jsonl"), Modality::Image).unwrap();
    let golden = fixture("extract/valid_imgs.img_feat.jsonl");
    assert!(difference(&tsv, &Features::read(&golden, Modality::Image).unwrap()) < 2e-6);

    let pictures = at("pictures");
    fs::create_dir_all(pictures.join("sub")).unwrap();
    let names = ["01_gradient_rgb.png", "03_scene.jpg"];
    for name in names {
        fs::copy(fixture("preprocess").join(name), pictures.join("sub").join(name)).unwrap();
    }
    succeed(images(dir.path(), &pictures, &at("folder.npy"), &[]));
    let folder = Features::read(&at("folder.npy"), Modality::Image).unwrap();
    let ids: Vec<String> = folder.ids().iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["sub/01_gradient_rgb.png", "sub/03_scene.jpg"]);
    let paths = names.map(|name| pictures.join("sub").join(name).display().to_string()).join("\n");
    with_input(images(dir.path(), Path::new("-"), &at("stdin.npy"), &[]), &paths);
    let piped = Features::read(&at("stdin.npy"), Modality::Image).unwrap();
    assert_eq!(piped.data(), folder.data());

    let lines = "一只猫\n\n一只狗\n";
    fs::write(at("t.txt"), lines).unwrap();
    succeed(texts(dir.path(), &at("t.txt"), &at("t.npy"), &[]));
    let json: String = (1..).zip(lines.lines()).fold(String::new(), |all, (id, text)| {
        all + &serde_json::json!({"text_id": id, "text": text}).to_string() + "\n"
    });
    for (name, input) in [("plain.npy", lines), ("json.npy", json.as_str())] {
        with_input(texts(dir.path(), Path::new("-"), &at(name), &[]), input);
        let file = Features::read(&at("t.npy"), Modality::Text).unwrap();
        assert_eq!(Features::read(&at(name), Modality::Text).unwrap(), file, "{name}");
    }
}

#[test]
fn an_extraction_is_continued_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // The ninth picture is bad: two batches of four are complete before it.
    let tsv = fs::read_to_string(fixture("dataset/train_imgs.tsv")).unwrap();
    let mut lines: Vec<String> = tsv.lines().map(str::to_owned).collect();
    let bad = lines[8].split('\t').next().unwrap().to_owned();
    lines[8] = format!("{bad}\tAAAA");
    let data = at("x_imgs.tsv");
    fs::write(&data, lines.join("\n")).unwrap();
    for form in ["jsonl", "safetensors"] {
        let (output, whole) = (at(&format!("x.{form}")), at(&format!("whole.{form}")));
        let skip = ["--skip-bad-images", "--img-batch-size=4"];
        let log = succeed(images(dir.path(), &data, &whole, &skip));
        assert!(log.contains("1 pictures could not be decoded"), "{log}");
        let list = fs::read_to_string(at(&format!("whole.{form}.skipped.txt"))).unwrap();
        assert!(list.starts_with(&format!("{bad}\t")) && list.lines().count() == 1, "{list}");

        fs::write(&output, "kept").unwrap();
        let error = fail(images(dir.path(), &data, &output, &["--img-batch-size=4"]), 1);
        assert!(error.contains(&bad) && error.contains("--skip-bad-images"), "{error}");
        assert!(error.contains("8 features are kept: --resume-extraction"), "{error}");
        assert_eq!(fs::read_to_string(&output).unwrap(), "kept");
        // As a kill in mid-write would leave it.
        let part = at(&format!("x.{form}.part"));
        let length = fs::metadata(&part).unwrap().len();
        fs::File::options().write(true).open(&part).unwrap().set_len(length - 10).unwrap();
        let other = ["--resume-extraction", "--precision=bf16"];
        let error = fail(images(dir.path(), &data, &output, &other), 1);
        assert!(error.contains("begun with --precision `fp32`"), "{error}");
        let resume = ["--resume-extraction", "--skip-bad-images", "--img-batch-size=4"];
        let log = succeed(images(dir.path(), &data, &output, &resume));
        assert!(log.contains("7 features are in") && log.contains("9 image features"), "{log}");
        assert!(fs::read(&output).unwrap() == fs::read(&whole).unwrap(), "{form}");
        assert!(!part.exists());
    }
}

#[test]
fn sixteen_bits_are_near_and_misuse_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let data = fixture("dataset/valid_texts.jsonl");
    let golden = fixture("extract/valid_texts.txt_feat.jsonl");
    let golden = Features::read(&golden, Modality::Text).unwrap();
    for (precision, near) in [("fp32", 2e-6), ("bf16", 0.05), ("fp16", 0.01)] {
        let output = at(&format!("{precision}.npy"));
        succeed(texts(dir.path(), &data, &output, &["--precision", precision]));
        let features = Features::read(&output, Modality::Text).unwrap();
        let worst = difference(&features, &golden);
        assert!(worst < near, "{precision}: {worst}");
        assert!(precision == "fp32" || worst > 1e-5, "{precision} was computed: {worst}");
    }
    let stdin = Path::new("-");
    let error =
        fail(texts(dir.path(), stdin, stdin, &["--extract-image-feats", "--image-data=-"]), 1);
    assert!(error.contains("--image-feat-output-path is needed"), "{error}");
    let twice = flag("text-data", &data);
    let error = fail(texts(dir.path(), &data, &data, &[&twice]), 1);
    assert!(error.contains("would replace the input"), "{error}");
    let repeated = at("r.jsonl");
    fs::write(&repeated, "{\"text_id\": 1, \"text\": \"a\"}\n{\"text_id\": 1, \"text\": \"b\"}\n")
        .unwrap();
    let error = fail(texts(dir.path(), &repeated, &at("r.npy"), &[]), 1);
    assert!(error.contains("id 1 has been seen before, as entry 1"), "{error}");
    assert!(!at("r.npy").exists() && !at("r.npy.part").exists());
}
