//! Measurements are of release builds.

use std::{
    env,
    path::PathBuf,
    process::{self, Command},
};

use anyhow::{Context, bail};

/// The command-line program beside this one.
pub fn program() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("finding this program")?;
    let program = own.with_file_name("cn-clip").with_extension(env::consts::EXE_EXTENSION);
    if !program.is_file() {
        bail!("{} is not there: cargo build --release", program.display());
    }
    Ok(program)
}

/// In a debug build, makes release builds of this and the command-line program and runs the former
/// with the same arguments; never returns then, except for failure.
pub fn again() -> anyhow::Result<()> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    let build = ["build", "--release", "--workspace", "--bin", "xtask", "--bin", "cn-clip"];
    let status = Command::new(cargo).args(build).status().context("starting cargo")?;
    if !status.success() {
        bail!("the release build failed");
    }
    let own = env::current_exe().context("finding this program")?;
    let release =
        own.parent().and_then(|debug| debug.parent()).map(|target| target.join("release"));
    let release = release.context("a program outside the target directory")?;
    let release = release.join("xtask").with_extension(env::consts::EXE_EXTENSION);
    let status = Command::new(release).args(env::args_os().skip(1)).status();
    process::exit(status.context("starting the release build")?.code().unwrap_or(1));
}
