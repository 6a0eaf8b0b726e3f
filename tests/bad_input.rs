//! Bad input: an error that names what is wrong, never a panic, and nothing already there is lost.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path, process::Command};

use base64::{Engine, prelude::BASE64_STANDARD};
use golden::fixture;
use run::{fail, succeed};
use tempfile::TempDir;
use tiny::{towers, train, weights};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
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

#[test]
fn missing_files_and_directories_are_named() {
    let dir = directory();
    let none = dir.path().join("none");
    let error = fail(train_on(dir.path(), &none, &["--name=a"]), 1);
    assert!(error.contains("--train-data") && error.contains("none"), "{error}");
    assert!(error.contains("build-lmdb-dataset"), "{error}");
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
    let (images, texts) = (flag("image-feats", &none), flag("text-feats", &none));
    let error = fail(["make-topk-predictions", &images, &texts, &output], 1);
    assert!(error.contains("none"), "{error}");
    let error = fail(["tokenize", "--input=none.jsonl"], 1);
    assert!(error.contains("none.jsonl"), "{error}");
    let error = fail(["similarity", "none.png", "--text=a", "--download-root=none"], 1);
    assert!(error.contains("none") && error.contains("clip_cn_vit-b-16.pt"), "{error}");
    assert!(fail(["train"], 2).contains("--train-data"));
    assert!(fail(["no-such-command"], 2).contains("no-such-command"));
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
    let mut args = vec![
        "extract-features".to_string(),
        "--extract-image-feats".to_string(),
        flag("image-data", &data.join("imgs")),
        flag("image-feat-output-path", &out),
        flag("resume", &weights()),
        "--context-length=24".to_string(),
    ];
    args.extend(towers(dir.path()));
    let error = fail(args, 1);
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
    fs::write(data.join("pairs/data.mdb"), "no database").unwrap();
    let error = fail(train_on(dir.path(), &data, &["--name=b"]), 1);
    assert!(error.contains("data.mdb"), "{error}");
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let dir = directory();
    let archive = fs::read(weights()).unwrap();
    for (name, bytes) in [
        ("text.pt", &b"not a checkpoint"[..]),
        ("empty.pt", &b""[..]),
        ("cut.pt", &archive[..archive.len() / 2]),
        ("zip.pt", &b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = fail(train(dir.path(), &["--name=a", &flag("resume", &path)]), 1);
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn another_architecture_is_one_error_that_lists_the_keys() {
    let dir = directory();
    let config = fs::read_to_string(tiny::tiny_model(dir.path())).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["vision_width"] = 48.into();
    config["text_num_hidden_layers"] = 3.into();
    let path = dir.path().join("other.json");
    fs::write(&path, config.to_string()).unwrap();
    let mut args = train(dir.path(), &["--name=a", &flag("resume", &weights())]);
    args.retain(|arg| !arg.contains("-model="));
    args.extend([flag("vision-model", &path), flag("text-model", &path)]);
    let error = fail(args, 1);
    for part in ["init_fp16.pt", "visual.proj", "[48", "bert.encoder.layer.2."] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
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
    ] {
        let mut args = train(dir.path(), &["--name=a"]);
        let names: Vec<&str> = flags.iter().filter_map(|flag| flag.split('=').next()).collect();
        args.retain(|arg| !names.iter().any(|name| arg.split('=').next() == Some(name)));
        args.extend(flags.iter().map(|flag| flag.to_string()));
        let error = fail(args, code);
        assert!(error.contains(named), "{flags:?}: {error}");
    }
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
    let mut args = vec![
        "extract-features".to_string(),
        "--extract-text-feats".to_string(),
        flag("text-data", &texts),
        flag("resume", &weights()),
        "--context-length=24".to_string(),
    ];
    args.extend(towers(dir.path()));
    assert!(fail(args, 1).contains("none.jsonl"));
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
        let args = [
            "make-topk-predictions".to_string(),
            flag("image-feats", &images),
            flag("text-feats", &texts),
            flag("output", &output),
        ];
        let error = fail(args, 1);
        assert!(error.contains("i.jsonl:2"), "{bad}: {error}");
        assert_eq!(fs::read_to_string(&output).unwrap(), "kept");
    }
}

/// Files may grow to this many blocks of 1024 bytes only, as on a full disk.
#[cfg(unix)]
fn with_small_files(blocks: u32, args: &[String]) -> (Option<i32>, String) {
    let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"");
    let output = Command::new("bash")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cn-clip")])
        .args(args)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let dir = directory();
    succeed(train(dir.path(), &["--name=a", "--max-steps=1"]));
    let latest = dir.path().join("a/checkpoints/epoch_latest.pt");
    let before = fs::read(&latest).unwrap();
    let files = |directory: &Path| -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
        names.sort();
        names
    };
    let there = files(&dir.path().join("a/checkpoints"));
    let (code, error) = with_small_files(100, &train(dir.path(), &["--name=a", "--max-steps=2"]));
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(".pt") && !error.contains("panicked"), "{error}");
    assert_eq!(fs::read(&latest).unwrap(), before);
    assert_eq!(files(&dir.path().join("a/checkpoints")), there);
    // And it can be continued once there is room.
    assert!(succeed(train(dir.path(), &["--name=a", "--max-steps=2"])).contains("2/2"));
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_data_set_whole() {
    let dir = directory();
    let picture = BASE64_STANDARD.encode(fs::read(fixture("preprocess/03_scene.jpg")).unwrap());
    let lmdb = build(dir.path(), &format!("1\t{picture}\n"), &pair(1, "图", 1));
    let before = fs::read(lmdb.join("imgs/data.mdb")).unwrap();
    let tsv: String = (1..100).map(|id| format!("{id}\t{picture}\n")).collect();
    fs::write(dir.path().join("x_imgs.tsv"), tsv).unwrap();
    let args =
        ["build-lmdb-dataset", &flag("data-dir", dir.path()), "--splits=x"].map(str::to_string);
    let (code, error) = with_small_files(200, &args);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains('x') && !error.contains("panicked"), "{error}");
    assert_eq!(fs::read(lmdb.join("imgs/data.mdb")).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path().join("lmdb")).unwrap().count(), 1, "nothing half is left");
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
