//! What lies on the disk, and a disk without room.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Every file below a directory, hidden ones too, with its bytes.
pub fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(snapshot(&path)),
            false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    files
}

/// Runs the binary with files that may grow to this many blocks of 1024 bytes only.
pub fn with_small_files(blocks: u32, args: &[String]) -> Output {
    let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"");
    Command::new("bash")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cn-clip")])
        .args(args)
        .output()
        .unwrap()
}

/// As that, and expects failure; returns standard error, which must be no panic.
pub fn fail_with_small_files(blocks: u32, args: &[String]) -> String {
    let output = with_small_files(blocks, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}
