//! Running of the binary as a user does.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

/// Runs the binary, which downloads nothing.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cn-clip"));
    command.args(args).env("HF_HUB_OFFLINE", "1").output().unwrap()
}

/// Runs it and expects success; returns standard error.
pub fn succeed<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    errors
}

/// Runs it and expects failure with `code`; returns standard error, which must be no panic.
pub fn fail<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, code: i32) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}
