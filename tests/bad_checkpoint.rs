//! Weights that cannot be used: an error that names the file, and nothing is written.

#![allow(clippy::unwrap_used)]

#[path = "support/disk.rs"]
mod disk;
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

use cn_clip_model::checkpoint::Checkpoint;
use disk::snapshot;
use golden::fixture;
use run::{fail, succeed};
use safetensors::{Dtype, tensor::TensorView};
use tiny::{flag, towers, train, weights};

/// Every command that loads weights, with these; outputs are `images` and `texts`.
fn commands(directory: &Path, weights: &Path) -> Vec<Vec<String>> {
    let picture = fixture("preprocess/01_gradient_rgb.png").display().to_string();
    let mut extract = vec![
        "extract-features".to_string(),
        "--extract-image-feats".to_string(),
        "--extract-text-feats".to_string(),
        flag("image-data", &fixture("dataset/lmdb/valid/imgs")),
        flag("text-data", &fixture("dataset/valid_texts.jsonl")),
        flag("image-feat-output-path", &directory.join("images")),
        flag("text-feat-output-path", &directory.join("texts")),
        flag("resume", weights),
        "--context-length=24".to_string(),
    ];
    let mut similarity = ["similarity", &picture, "--text=a", &flag("checkpoint", weights)]
        .map(String::from)
        .to_vec();
    extract.extend(towers(directory));
    similarity.extend(towers(directory));
    vec![extract, similarity]
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let archive = fs::read(weights()).unwrap();
    let mut flipped = archive.clone();
    flipped[..4].fill(0xff);
    let other = fixture("dataset/lmdb/valid/imgs/data.mdb");
    for (name, bytes) in [
        ("text.pt", &b"not a checkpoint"[..]),
        ("empty.pt", &b""[..]),
        ("cut.pt", &archive[..archive.len() / 2]),
        ("cut_by_a_byte.pt", &archive[..archive.len() - 1]),
        ("no_archive.pt", &flipped),
        ("empty_archive.pt", &b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
        ("database.pt", &fs::read(other).unwrap()),
        ("cut.safetensors", &b"\x40\0\0\0\0\0\0\0{\"a\": "[..]),
        ("long.safetensors", &b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"[..]),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::write(dir.path().join("images"), "kept").unwrap();
        fs::write(dir.path().join("texts"), "kept").unwrap();
        towers(dir.path());
        let before = snapshot(dir.path());
        for args in commands(dir.path(), &path) {
            let error = fail(args, 1);
            assert!(error.contains(name), "{error}");
            assert_eq!(snapshot(dir.path()), before, "{name}");
        }
        let error = fail(train(dir.path(), &["--name=a", &flag("resume", &path)]), 1);
        assert!(error.contains(name), "{error}");
        assert!(!dir.path().join("a/checkpoints/epoch_latest.pt").exists());
    }
    for args in commands(dir.path(), &dir.path().join("none.pt")) {
        let error = fail(args, 1);
        assert_eq!(error.matches("No such file").count(), 1, "{error}");
        assert!(error.contains("none.pt"), "{error}");
    }
    for args in commands(dir.path(), dir.path()) {
        assert!(fail(args, 1).contains("not a file"));
    }
}

#[test]
fn another_architecture_is_one_error_that_lists_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let resnet = fixture("model/rn_tiny/checkpoint_fp16.pt");
    let listed = ["checkpoint_fp16.pt", "wrong shape: text_projection is [16, 32]"];
    let listed = listed.into_iter().chain([
        "[8, 16]",
        "missing: visual.class_embedding",
        "it looks like an image tower with embed_dim 32, image_resolution 64",
        "unexpected: visual.bn1.running_mean",
    ]);
    let listed: Vec<&str> = listed.collect();
    let resume = flag("resume", &resnet);
    let mut all = commands(dir.path(), &resnet);
    all.push(train(dir.path(), &["--name=a", &resume]));
    for args in all {
        let error = fail(args, 1);
        for part in &listed {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        assert_eq!(error.matches("error:").count(), 1, "{error}");
    }
    assert!(!dir.path().join("images").exists() && !dir.path().join("texts").exists());
}

#[test]
fn another_width_and_depth_are_one_error_that_lists_the_keys() {
    let dir = tempfile::tempdir().unwrap();
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

/// The recorded weights with this value in the image projection.
fn weights_with(value: f32, path: PathBuf) -> PathBuf {
    let checkpoint = Checkpoint::open(weights()).unwrap();
    let read = |(key, tensor): &(String, cn_clip_model::checkpoint::LazyTensor)| {
        let mut values = tensor.read().unwrap();
        if key == "visual.proj" {
            values[0] = value;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (key.clone(), tensor.shape.clone(), bytes)
    };
    let tensors: Vec<_> = checkpoint.state_dict.iter().map(read).collect();
    let views = tensors.iter().map(|(key, shape, bytes)| {
        (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

#[test]
fn weights_that_are_not_finite_give_no_results() {
    let dir = tempfile::tempdir().unwrap();
    let whole = weights_with(0.1, dir.path().join("whole.safetensors"));
    for args in commands(dir.path(), &whole) {
        succeed(args);
    }
    fs::write(dir.path().join("images"), "kept").unwrap();
    let path = weights_with(f32::NAN, dir.path().join("nan.safetensors"));
    for args in commands(dir.path(), &path) {
        let error = fail(args, 1);
        assert!(error.contains("nan.safetensors") && error.contains("NaN"), "{error}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("images")).unwrap(), "kept");
    let resume = flag("resume", &path);
    let more = ["--name=a", "--max-steps=1", &resume, "--reset-optimizer", "--reset-data-offset"];
    let error = fail(train(dir.path(), &more), 1);
    assert!(error.contains("the loss is NaN"), "{error}");
    assert!(!dir.path().join("a/checkpoints/epoch_latest.pt").exists());
}

#[test]
fn a_flipped_bit_in_the_weights_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(weights()).unwrap();
    let (at, count) = (bytes.len() / 2, bytes.len());
    assert!(count > 100_000, "in the middle lie the word embeddings");
    bytes[at] ^= 1;
    let path = dir.path().join("flipped.pt");
    fs::write(&path, bytes).unwrap();
    let error = fail(train(dir.path(), &["--name=a", &flag("resume", &path)]), 1);
    assert!(error.contains("flipped.pt") && error.contains("checksum"), "{error}");
}
