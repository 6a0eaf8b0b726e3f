//! Bad input: an error that names what is wrong, never a panic, and nothing already there is lost.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use golden::fixture;
use run::{fail, succeed};
use tempfile::TempDir;
use tiny::{flag, towers, train, weights};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes and builds a split `x` of these pictures and texts below `directory`; returns the LMDB.
fn build(directory: &Path, tsv: &str, jsonl: &str) -> std::path::PathBuf {
    fs::write(directory.join("x_imgs.tsv"), tsv).unwrap();
    fs::write(directory.join("x_texts.jsonl"), jsonl).unwrap();
    succeed(["build-lmdb-dataset", &flag("data-dir", directory), "--splits=x"]);
    directory.join("lmdb/x")
}

fn pair(text_id: usize, text: &str, image_id: usize) -> String {
    let line = serde_json::json!({"text_id": text_id, "text": text, "image_ids": [image_id]});
    format!("{line}\n")
}

/// A data set of 8 pairs whose picture 3 is cut off.
fn data_with_a_bad_picture(directory: &Path) -> std::path::PathBuf {
    let picture = fs::read(fixture("preprocess/03_scene.jpg")).unwrap();
    let (mut tsv, mut jsonl) = (String::new(), String::new());
    for id in 0..8 {
        let bytes = if id == 3 { &picture[..300] } else { &picture[..] };
        tsv.push_str(&format!("{id}\t{}\n", BASE64_STANDARD.encode(bytes)));
        jsonl.push_str(&pair(id, &format!("图{id}"), id));
    }
    build(directory, &tsv, &jsonl)
}

/// Arguments of training on other data, without validation.
fn train_on(directory: &Path, data: &Path, more: &[&str]) -> Vec<String> {
    let mut args = train(directory, more);
    args[1] = flag("train-data", data);
    args.retain(|arg| !arg.starts_with("--val-data"));
    args
}

/// Arguments of an extraction by the recorded weights.
fn extract(directory: &Path, more: [String; 3]) -> Vec<String> {
    let mut args = vec!["extract-features".to_string(), "--context-length=24".to_string()];
    args.push(flag("resume", &weights()));
    args.extend(more);
    args.extend(towers(directory));
    args
}

fn extract_images(directory: &Path, data: &Path) -> Vec<String> {
    let output = flag("image-feat-output-path", &directory.join("images.jsonl"));
    extract(directory, ["--extract-image-feats".into(), flag("image-data", data), output])
}

fn extract_texts(directory: &Path, data: &Path) -> Vec<String> {
    let output = flag("text-feat-output-path", &directory.join("texts.jsonl"));
    extract(directory, ["--extract-text-feats".into(), flag("text-data", data), output])
}

#[test]
fn missing_files_and_directories_are_named() {
    let dir = directory();
    let none = dir.path().join("none");
    let error = fail(train_on(dir.path(), &none, &["--name=a"]), 1);
    assert!(error.contains("--train-data") && error.contains("none"), "{error}");
    assert!(error.contains("LMDB split") && error.contains("imgs"), "{error}");
    let resume = flag("resume", &dir.path().join("none.pt"));
    let error = fail(train(dir.path(), &["--name=b", &resume]), 1);
    assert!(error.contains("none.pt"), "{error}");
    let mut args = train(dir.path(), &["--name=c"]);
    args.push("--vision-model=none.json".to_string());
    args.retain(|arg| !arg.contains("vision-model=/"));
    let error = fail(args, 1);
    assert!(error.contains("none.json") && error.contains("ViT-B-16"), "{error}");
    let missing = flag("data-dir", &none);
    let error = fail(["build-lmdb-dataset", &missing, "--splits=train"], 1);
    assert!(error.contains("--data-dir"), "{error}");
    let here = flag("data-dir", dir.path());
    let error = fail(["build-lmdb-dataset", &here, "--splits=train"], 1);
    assert!(error.contains("train_imgs.tsv"), "{error}");
    let output = flag("output", &dir.path().join("x.safetensors"));
    let error = fail(["preprocess", "none.png", &output], 1);
    assert!(error.contains("none.png"), "{error}");
    let error = fail(extract_images(dir.path(), &none), 1);
    assert!(error.contains("--image-data") && error.contains("none"), "{error}");
    assert!(
        fail(extract_texts(dir.path(), &dir.path().join("none.jsonl")), 1).contains("none.jsonl")
    );
    let validation = flag("val-data", &none);
    let mut args = train(dir.path(), &["--name=d"]);
    args[2] = validation;
    assert!(fail(args, 1).contains("--val-data"));
    assert!(!dir.path().join("d").exists(), "nothing is begun");
    for command in ["evaluation", "evaluation-tr"] {
        let report = dir.path().join("report.json").display().to_string();
        let error = fail([command, "none.jsonl", "none_too.jsonl", &report], 1);
        assert!(error.contains("none.jsonl"), "{error}");
        let annotations = fixture("eval/valid_texts.jsonl").display().to_string();
        let error = fail([command, &annotations, "none_too.jsonl", &report], 1);
        assert!(error.contains("none_too.jsonl"), "{error}");
    }
    let error = fail(["transform-ir-annotation-to-tr", "--input=none.jsonl"], 1);
    assert!(error.contains("none.jsonl"), "{error}");
    let (images, texts) = (flag("image-feats", &none), flag("text-feats", &none));
    let error = fail(["make-topk-predictions", &images, &texts, &output], 1);
    assert!(error.contains("none"), "{error}");
    let error = fail(["tokenize", "--input=none.jsonl"], 1);
    assert!(error.contains("none.jsonl"), "{error}");
    let error = fail(["similarity", "none.png", "--text=a", "--download-root=none"], 1);
    assert!(error.contains("put it at none/clip_cn_vit-b-16.pt"), "{error}");
    assert!(fail(["train"], 2).contains("--train-data"));
    assert!(fail(["no-such-command"], 2).contains("no-such-command"));
}

#[test]
fn no_split_is_built_where_one_is_missing() {
    let dir = directory();
    let data = flag("data-dir", &fixture("dataset"));
    let target = flag("lmdb-dir", &dir.path().join("lmdb"));
    let error = fail(["build-lmdb-dataset", &data, "--splits=train,none", &target], 1);
    assert!(error.contains("none_imgs.tsv"), "{error}");
    assert!(!dir.path().join("lmdb").exists());
}

#[test]
fn a_bad_picture_stops_training_or_is_counted() {
    let dir = directory();
    let data = data_with_a_bad_picture(dir.path());
    let error = fail(train_on(dir.path(), &data, &["--name=a", "--max-epochs=1"]), 1);
    assert!(error.contains("image 3"), "{error}");
    assert!(error.contains("--skip-bad-images"), "{error}");
    let skip = ["--name=b", "--max-epochs=1", "--skip-bad-images"];
    let log = succeed(train_on(dir.path(), &data, &skip));
    assert!(log.contains("image 3"), "{log}");
    assert!(log.contains("1 pictures could not be decoded"), "{log}");

    let out = dir.path().join("images.jsonl");
    fs::write(&out, "kept").unwrap();
    let error = fail(extract_images(dir.path(), &data.join("imgs")), 1);
    assert!(error.contains("image 3"), "{error}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "kept");

    let picture = dir.path().join("cut.jpg");
    let bytes = fs::read(fixture("preprocess/03_scene.jpg")).unwrap();
    fs::write(&picture, &bytes[..300]).unwrap();
    let name = picture.display().to_string();
    let output = flag("output", &dir.path().join("x.safetensors"));
    assert!(fail(["preprocess", &name, &output], 1).contains("cut.jpg"));
    assert!(!dir.path().join("x.safetensors").exists());
    let mut args = vec!["similarity".to_string(), name, "--text=a".to_string()];
    args.push(flag("checkpoint", &weights()));
    args.extend(towers(dir.path()));
    assert!(fail(args, 1).contains("cut.jpg"));
}

#[test]
fn corrupt_databases_are_named() {
    let dir = directory();
    let data = dir.path().join("lmdb");
    for part in ["imgs", "pairs"] {
        fs::create_dir_all(data.join(part)).unwrap();
        let bytes = fs::read(fixture("dataset/lmdb/train").join(part).join("data.mdb")).unwrap();
        fs::write(data.join(part).join("data.mdb"), &bytes[..bytes.len() / 2]).unwrap();
    }
    let error = fail(train_on(dir.path(), &data, &["--name=a"]), 1);
    assert!(error.contains("data.mdb") && error.contains("build it again"), "{error}");
    let error = fail(extract_images(dir.path(), &data.join("imgs")), 1);
    assert!(error.contains("imgs/data.mdb") && error.contains("build it again"), "{error}");
    fs::write(data.join("pairs/data.mdb"), "no database").unwrap();
    let error = fail(train_on(dir.path(), &data, &["--name=b"]), 1);
    assert!(error.contains("data.mdb"), "{error}");
    // The wrong one of two whole databases.
    let pairs = fixture("dataset/lmdb/valid/pairs");
    let error = fail(extract_images(dir.path(), &pairs), 1);
    assert!(error.contains("--image-data") && error.contains("num_images"), "{error}");
    assert!(!dir.path().join("images.jsonl").exists());
}

#[test]
fn pairs_without_their_pictures_stop_training() {
    let dir = directory();
    let data = dir.path().join("lmdb");
    for (split, part) in [("train", "pairs"), ("valid", "imgs")] {
        fs::create_dir_all(data.join(part)).unwrap();
        let from = fixture("dataset/lmdb").join(split).join(part).join("data.mdb");
        fs::write(data.join(part).join("data.mdb"), fs::read(from).unwrap()).unwrap();
    }
    for more in [&["--name=a"][..], &["--name=b", "--skip-bad-images"]] {
        let error = fail(train_on(dir.path(), &data, more), 1);
        let last = error.lines().last().unwrap();
        assert!(last.starts_with("error: image ") && last.contains("lmdb/imgs"), "{error}");
        assert!(last.contains("build the data set again"), "{error}");
    }
    // So it is with the pictures of the validation.
    let mut args = train(dir.path(), &["--name=c", "--max-steps=2"]);
    args[2] = flag("val-data", &data);
    assert!(fail(args, 1).contains("build the data set again"));
}

#[test]
fn a_split_of_texts_without_pictures_cannot_be_trained_on() {
    let dir = directory();
    let picture =
        BASE64_STANDARD.encode(fs::read(fixture("preprocess/01_gradient_rgb.png")).unwrap());
    let line = "{\"text_id\": 1, \"text\": \"图\", \"image_ids\": []}\n";
    let data = build(dir.path(), &format!("1\t{picture}\n"), line);
    let error = fail(train_on(dir.path(), &data, &["--name=a"]), 1);
    assert!(error.contains("--train-data") && error.contains("lmdb/x holds no pairs"), "{error}");
    let mut args = train(dir.path(), &["--name=b", "--max-steps=1"]);
    args[2] = flag("val-data", &data);
    let error = fail(args, 1);
    assert!(error.contains("--val-data") && error.contains("lmdb/x holds no pairs"), "{error}");
    assert!(!dir.path().join("b").exists(), "nothing is begun");
    // But its pictures are there.
    assert!(succeed(extract_images(dir.path(), &data.join("imgs"))).contains("1 image features"));
}

#[test]
fn senseless_batches_name_their_flag() {
    let dir = directory();
    for (flags, code, named) in [
        (&["--batch-size=0"][..], 1, "--batch-size"),
        (&["--batch-size=14"], 1, "13"),
        (&["--batch-size=-1"], 2, "--batch-size"),
        (&["--batch-size=7", "--accum-freq=2"], 1, "--accum-freq"),
        (&["--valid-batch-size=0"], 1, "--valid-batch-size"),
        (&["--context-length=65"], 1, "--context-length"),
        (&["--mask-ratio=1"], 1, "--mask-ratio"),
        (&["--mask-ratio=0.999"], 1, "patches of a picture"),
        (&["--batch-size=4294967296", "--accum-freq=4294967296"], 1, "--batch-size"),
    ] {
        let mut args = train(dir.path(), &["--name=a"]);
        let names: Vec<&str> = flags.iter().filter_map(|flag| flag.split('=').next()).collect();
        args.retain(|arg| !names.iter().any(|name| arg.split('=').next() == Some(name)));
        args.extend(flags.iter().map(|flag| flag.to_string()));
        let error = fail(args, code);
        assert!(error.contains(named), "{flags:?}: {error}");
        assert!(!dir.path().join("a/checkpoints").exists(), "{flags:?}: nothing is begun");
    }
    for (args, named) in [
        (&["extract-features", "--img-batch-size=0"][..], "--img-batch-size"),
        (&["extract-features", "--text-batch-size=0"], "--text-batch-size"),
        (&["make-topk-predictions", "--eval-batch-size=0"], "--eval-batch-size"),
        (&["make-topk-predictions-tr", "--top-k=0"], "--top-k"),
        (&["preprocess", "x.png", "--resolution=0"], "--resolution"),
        (&["tokenize", "--context-length=1"], "--context-length"),
    ] {
        assert!(fail(args, 2).contains(named), "{args:?}");
    }
    // Batches larger than the data are one batch where nothing is learned.
    let data = fixture("dataset/lmdb/valid/imgs");
    let mut args = extract_images(dir.path(), &data);
    args.push("--img-batch-size=1000".to_string());
    assert!(succeed(args).contains("image features are stored"));
}

#[test]
fn texts_without_pictures_and_empty_splits_are_refused() {
    let dir = directory();
    let picture =
        BASE64_STANDARD.encode(fs::read(fixture("preprocess/01_gradient_rgb.png")).unwrap());
    let lmdb = build(dir.path(), &format!("1\t{picture}\n"), &pair(1, "图", 1));
    let before = fs::read(lmdb.join("pairs/data.mdb")).unwrap();
    let again = ["build-lmdb-dataset", &flag("data-dir", dir.path()), "--splits=x"];
    fs::write(dir.path().join("x_texts.jsonl"), pair(7, "图", 2)).unwrap();
    let error = fail(again, 1);
    assert!(error.contains("x_texts.jsonl:1") && error.contains('2'), "{error}");
    for (file, text) in [("x_texts.jsonl", ""), ("x_imgs.tsv", "")] {
        fs::write(dir.path().join(file), text).unwrap();
        assert!(fail(again, 1).contains("x_"), "{file}");
    }
    assert_eq!(fs::read(lmdb.join("pairs/data.mdb")).unwrap(), before, "the old one stays");
    // Queries of an extraction.
    let texts = dir.path().join("none.jsonl");
    fs::write(&texts, "").unwrap();
    assert!(fail(extract_texts(dir.path(), &texts), 1).contains("none.jsonl"));
}

#[test]
fn texts_of_only_spaces_are_tokenized_as_the_empty_text() {
    let dir = directory();
    let picture =
        BASE64_STANDARD.encode(fs::read(fixture("preprocess/01_gradient_rgb.png")).unwrap());
    let tsv: String = (0..2).map(|id| format!("{id}\t{picture}\n")).collect();
    let data = build(dir.path(), &tsv, &(pair(0, "   ", 0) + &pair(1, "\u{3000}\t", 1)));
    let mut args = train_on(dir.path(), &data, &["--name=a", "--max-steps=1"]);
    args.retain(|arg| !arg.starts_with("--batch-size"));
    args.push("--batch-size=2".to_string());
    assert!(succeed(args).contains("Global Steps: 1/1"));
    let input = dir.path().join("in.jsonl");
    fs::write(&input, "{\"text\": \"   \"}\n").unwrap();
    let output = run::run(["tokenize", "--context-length=4", &flag("input", &input)]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["ids"], serde_json::json!([101, 102, 0, 0]));
    // Their features are those of the empty text.
    let line = |id, text| serde_json::json!({"text_id": id, "text": text}).to_string() + "\n";
    let texts = line(1, "   ") + &line(2, "\u{3000}\t") + &line(3, "");
    fs::write(&input, texts).unwrap();
    succeed(extract_texts(dir.path(), &input));
    let output = fs::read_to_string(dir.path().join("texts.jsonl")).unwrap();
    let features: Vec<_> = output.lines().filter_map(|line| line.split_once(", ")).collect();
    assert_eq!(features.len(), 3);
    assert!(features.iter().all(|(_, feature)| *feature == features[0].1));
}

#[test]
fn features_that_are_not_finite_are_refused_by_line() {
    let dir = directory();
    let (images, texts) = (dir.path().join("i.jsonl"), dir.path().join("t.jsonl"));
    let output = dir.path().join("out.jsonl");
    fs::write(&output, "kept").unwrap();
    for bad in ["NaN", "Infinity", "1e999", "null"] {
        let image = format!(
            "{{\"image_id\": 1, \"feature\": [0.5, 1.0]}}\n{{\"image_id\": 2, \"feature\": [{bad}, 1.0]}}\n"
        );
        fs::write(&images, image).unwrap();
        fs::write(&texts, "{\"text_id\": 1, \"feature\": [0.5, 1.0]}\n").unwrap();
        for command in ["make-topk-predictions", "make-topk-predictions-tr"] {
            let (images, texts) = (flag("image-feats", &images), flag("text-feats", &texts));
            let error = fail([command, &images, &texts, &flag("output", &output)], 1);
            assert!(error.contains("i.jsonl:2"), "{bad}: {error}");
        }
        assert_eq!(fs::read_to_string(&output).unwrap(), "kept");
    }
}

#[test]
fn the_demonstration_touches_no_directory_of_others() {
    let dir = directory();
    fs::write(dir.path().join("mine.txt"), "kept").unwrap();
    let error = fail(["demo", "--quick", &flag("output", dir.path())], 1);
    assert!(error.contains("--output"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn devices_that_are_not_there_are_explained() {
    let error = fail(["similarity", "x.png", "--text=a", "--device=abacus"], 2);
    assert!(error.contains("abacus") && error.contains("cpu"), "{error}");
}
