//! The recorded tiny model and data, as arguments of the binary.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::golden::fixture;

/// Writes the recorded model configuration to `directory` and returns its path.
pub fn tiny_model(directory: &Path) -> PathBuf {
    let meta: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("train_run/meta.json")).unwrap()).unwrap();
    let path = directory.join("tiny.json");
    fs::write(&path, meta["model_config"].to_string()).unwrap();
    path
}

/// The two flags that choose it.
pub fn towers(directory: &Path) -> [String; 2] {
    let path = tiny_model(directory);
    let path = path.display();
    [format!("--vision-model={path}"), format!("--text-model={path}")]
}

/// A flag that takes a path.
pub fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// The recorded initial weights.
pub fn weights() -> PathBuf {
    fixture("train_run/init_fp16.pt")
}

/// Arguments of the recorded training run, then `more`.
pub fn train(directory: &Path, more: &[&str]) -> Vec<String> {
    let data = fixture("dataset/lmdb").display().to_string();
    let mut args: Vec<String> = [
        "train",
        &format!("--train-data={data}/train"),
        &format!("--val-data={data}/valid"),
        &format!("--logs={}", directory.display()),
        "--batch-size=4",
        "--valid-batch-size=3",
        "--log-interval=1",
        "--report-training-batch-acc",
        "--context-length=24",
        "--warmup=2",
        "--lr=1e-3",
        "--wd=0.05",
        "--valid-step-interval=2",
        "--decay-groups=reference",
    ]
    .map(str::to_string)
    .to_vec();
    args.extend(towers(directory));
    args.extend(more.iter().map(|arg| arg.to_string()));
    args
}
