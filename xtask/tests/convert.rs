//! `cargo xtask convert` as a user runs it.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use cn_clip_model::checkpoint::{Checkpoint, ElementType};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A directory with the configuration of the recorded model.
fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read(fixture("train_run/meta.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&text).unwrap();
    fs::write(dir.path().join("tiny.json"), meta["model_config"].to_string()).unwrap();
    dir
}

fn convert(dir: &Path, input: &Path, output: &Path, more: &[&str]) -> Output {
    let tiny = dir.join("tiny.json");
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("convert")
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .arg("--vision-model")
        .arg(&tiny)
        .arg("--text_model")
        .arg(&tiny)
        .args(more)
        .output()
        .unwrap()
}

fn succeed(dir: &Path, input: &Path, output: &Path, more: &[&str]) -> (String, String) {
    let done = convert(dir, input, output, more);
    let errors = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(0), "{errors}");
    (String::from_utf8(done.stdout).unwrap(), errors)
}

fn fail(dir: &Path, input: &Path, output: &Path, more: &[&str], code: i32) -> String {
    let done = convert(dir, input, output, more);
    let errors = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(code), "{errors}");
    assert!(!errors.contains("panicked") && done.stdout.is_empty(), "{errors}");
    errors
}

fn weights() -> PathBuf {
    fixture("train_run/init_fp16.pt")
}

#[test]
fn forms_are_told_by_the_extension_or_named() {
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    let (told, _) = succeed(dir.path(), &weights(), &path("a.bpk"), &[]);
    assert!(told.contains("a.bpk: burn, 71 tensors"), "{told}");
    succeed(dir.path(), &path("a.bpk"), &path("b.safetensors"), &["--dtype=bf16"]);
    let half = Checkpoint::open(path("b.safetensors")).unwrap();
    assert_eq!(half.get("visual.proj").unwrap().element, ElementType::Bf16);
    succeed(dir.path(), &path("a.bpk"), &path("hub"), &["--to=huggingface"]);
    let vocabulary = fs::read_to_string(path("hub/vocab.txt")).unwrap();
    assert_eq!(vocabulary.lines().count(), 21128);
    succeed(dir.path(), &path("hub"), &path("c.pt"), &[]);
    let (one, other) =
        (Checkpoint::open(weights()).unwrap(), Checkpoint::open(path("c.pt")).unwrap());
    for (key, tensor) in &one.state_dict {
        assert_eq!(tensor.read().unwrap(), other.get(key).unwrap().read().unwrap(), "{key}");
    }
    // The record says what it is.
    let done = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["convert", "--input"])
        .arg(path("a.bpk"))
        .arg("--output")
        .arg(path("d.pt"))
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    let error = fail(dir.path(), &weights(), &path("x"), &[], 1);
    assert!(error.contains("give --to"), "{error}");
    let error = fail(dir.path(), &weights(), &path("x"), &["--to=onnx"], 2);
    assert!(error.contains("burn, safetensors, huggingface or official"), "{error}");
    fail(dir.path(), &weights(), &path("x.pt"), &["--dtype=int8"], 2);
    fail(dir.path(), &weights(), &path("x.pt"), &["--model=ViT-B-16"], 2);
    let error = fail(dir.path(), &path("none.pt"), &path("x.pt"), &[], 1);
    assert!(error.contains("none.pt"), "{error}");
    // Weights of another model than was named.
    let other = fixture("model/rn_tiny/checkpoint_fp16.pt");
    let error = fail(dir.path(), &other, &path("x.pt"), &[], 1);
    assert!(error.contains("wrong shape: ") && error.contains("it looks like an image"), "{error}");
    fs::write(path("kept.pt"), "kept").unwrap();
    let error = fail(dir.path(), &weights(), &path("kept.pt"), &[], 1);
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read_to_string(path("kept.pt")).unwrap(), "kept");
    succeed(dir.path(), &weights(), &path("kept.pt"), &["--force"]);
    assert!(fs::metadata(path("kept.pt")).unwrap().len() > 100_000);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn optimizer_state_that_is_left_out_is_said() {
    let dir = directory();
    let packed = fs::File::open(fixture("train_run/epoch2_with_optimizer.pt.gz")).unwrap();
    let input = dir.path().join("epoch2.pt");
    let mut out = fs::File::create(&input).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    let (_, note) = succeed(dir.path(), &input, &dir.path().join("a.bpk"), &[]);
    assert!(note.contains("optimizer state"), "{note}");
    let (_, note) = succeed(dir.path(), &input, &dir.path().join("a.pt"), &[]);
    assert!(!note.contains("optimizer"), "{note}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    let dir = directory();
    for output in ["/sys/out.pt", "/sys/out.bpk", "/sys/out.safetensors"] {
        let error = fail(dir.path(), &weights(), Path::new(output), &[], 1);
        assert!(error.contains(output), "{error}");
    }
    let error = fail(dir.path(), &weights(), Path::new("/sys/out"), &["--to=huggingface"], 1);
    assert!(error.contains("/sys/out"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() {
    let dir = directory();
    for (name, form) in [
        ("a.pt", "official"),
        ("a.bpk", "burn"),
        ("a.safetensors", "safetensors"),
        ("hub", "huggingface"),
    ] {
        let output = dir.path().join(name);
        if form != "huggingface" {
            fs::write(&output, "kept").unwrap();
        }
        let tiny = dir.path().join("tiny.json");
        let done = Command::new("bash")
            .args(["-c", "ulimit -f 200; trap '' XFSZ; exec \"$@\"", "sh"])
            .args([env!("CARGO_BIN_EXE_xtask"), "convert", "--force", "--to", form, "--input"])
            .arg(weights())
            .arg("--output")
            .arg(&output)
            .arg("--vision-model")
            .arg(&tiny)
            .arg("--text-model")
            .arg(&tiny)
            .output()
            .unwrap();
        let error = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert!(error.contains("too large") && !error.contains("panicked"), "{error}");
        match form {
            "huggingface" => assert!(!output.exists()),
            _ => assert_eq!(fs::read_to_string(&output).unwrap(), "kept"),
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

/// A file of a gigabyte of zeros, which takes no room on the disk.
fn large(path: &Path) {
    const PART: usize = 16 << 20;
    let mut header = serde_json::Map::new();
    for index in 0..64 {
        let range = [index * PART, (index + 1) * PART];
        let info = serde_json::json!({"dtype": "F32", "shape": [PART / 4], "data_offsets": range});
        header.insert(format!("visual.part{index:02}"), info);
    }
    let header = serde_json::Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(path, &bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len((bytes.len() + 64 * PART) as u64).unwrap();
}

#[cfg(unix)]
#[test]
fn a_killed_conversion_leaves_no_half_file() {
    use std::os::unix::process::ExitStatusExt;
    let dir = directory();
    let input = dir.path().join("large.safetensors");
    large(&input);
    for name in ["new.pt", "old.pt", "new.safetensors"] {
        let output = dir.path().join(name);
        if name == "old.pt" {
            fs::write(&output, "kept").unwrap();
        }
        let parts = || {
            let files = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap());
            let hidden = |file: &fs::DirEntry| file.file_name().to_string_lossy().starts_with('.');
            files.filter(hidden).collect::<Vec<_>>()
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["convert", "--force", "--input"])
            .arg(&input)
            .arg("--output")
            .arg(&output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Under another name until it is whole.
        let begun = || parts().iter().any(|file| file.metadata().is_ok_and(|data| data.len() > 0));
        while !begun() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{name}");
        match name {
            "old.pt" => assert_eq!(fs::read_to_string(&output).unwrap(), "kept"),
            _ => assert!(!output.exists()),
        }
        parts().iter().for_each(|file| fs::remove_file(file.path()).unwrap());
    }
}
