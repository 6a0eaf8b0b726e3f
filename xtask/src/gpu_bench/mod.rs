//! Rates on a CUDA machine beside PyTorch's: a folder to carry there, and its results as a table.

mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use cn_clip_model::ClipConfig;

use report::Results;

/// Models to measure.
const MODELS: [&str; 2] = ["ViT-B-16", "ViT-H-14"];
const SCRIPT: &str = include_str!("../../peers/gpu_bench.py");
const INSTRUCTIONS: &str = include_str!("../../peers/gpu_bench.md");

/// Flags of `cargo xtask gpu-bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct GpuBenchArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Folder to make
    #[arg(long, default_value = "target/gpu-bench")]
    output: PathBuf,
    /// Backend of the binary
    #[arg(long, default_value = "cuda")]
    features: String,
    /// Take this binary of xtask instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print measured results as a table in Markdown
    Report {
        /// What gpu_bench.py has written
        results: PathBuf,
        /// Peak of the device in dense bf16
        #[arg(long)]
        peak_tflops: Option<f64>,
    },
}

/// Makes the folder, or prints the table.
pub fn run(args: &GpuBenchArgs) -> anyhow::Result<()> {
    match &args.action {
        Some(Action::Report { results, peak_tflops }) => {
            print!("{}", Results::read(results)?.table(*peak_tflops)?);
            Ok(())
        }
        None => {
            let binary = match &args.binary {
                Some(binary) => binary.clone(),
                None => build(&args.features)?,
            };
            bundle(&binary, &args.output)?;
            println!("{}: carry it to the machine and follow README.md", args.output.display());
            Ok(())
        }
    }
}

/// Builds this program for a backend.
fn build(features: &str) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // A directory of its own: this program may be running from the usual one.
    let target = root.join("target/gpu-bench-build");
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--package", "xtask", "--features", features]);
    command.arg("--target-dir").arg(&target).current_dir(&root);
    // Linking takes minutes instead of a quarter of an hour; what is measured runs on the device.
    command.envs([
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ]);
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!(
            "the build with `{features}` failed. With cuda and rocm it downloads an LLVM from \
             github.com/tracel-ai/tracel-llvm into the user's data directory, and needs a C++ \
             compiler: run this command on a machine with access to it (a graphics processor is \
             not needed), or give it an LLVM of the distribution (docs/backends.md), or copy a \
             binary of xtask built elsewhere and name it by --binary"
        );
    }
    Ok(target.join("release").join(format!("xtask{}", std::env::consts::EXE_SUFFIX)))
}

/// Puts binary, script, configurations and recordings into one folder.
fn bundle(binary: &Path, output: &Path) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let name = |path: &Path| path.display().to_string();
    fs::create_dir_all(output.join("configs")).with_context(|| name(output))?;
    fs::copy(binary, output.join("cn-clip-bench")).with_context(|| name(binary))?;
    for (file, text) in [("gpu_bench.py", SCRIPT), ("README.md", INSTRUCTIONS)] {
        fs::write(output.join(file), text).with_context(|| file.to_string())?;
    }
    for model in MODELS {
        let config = serde_json::to_string_pretty(&ClipConfig::published(model)?)?;
        let path = output.join("configs").join(format!("{model}.json"));
        fs::write(&path, config).with_context(|| name(&path))?;
    }
    copy(&root.join("tests/fixtures"), &output.join("fixtures"))
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let context = || from.display().to_string();
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let target = to.join(entry.file_name());
        match entry.file_type().with_context(context)?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => {
                fs::copy(entry.path(), &target).with_context(context)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_holds_what_the_machine_needs() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("bundle");
        bundle(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"), &output).unwrap();
        for file in [
            "cn-clip-bench",
            "gpu_bench.py",
            "README.md",
            "configs/ViT-H-14.json",
            "fixtures/model/vit_tiny/forward_eval.safetensors",
        ] {
            assert!(output.join(file).metadata().unwrap().len() > 0, "{file}");
        }
        let path = output.join("configs/ViT-B-16.json");
        let path = path.to_str().unwrap();
        assert_eq!(
            ClipConfig::load(path, path).unwrap(),
            ClipConfig::published("ViT-B-16").unwrap()
        );
        let error = bundle(Path::new("no-such-binary"), &output).unwrap_err().to_string();
        assert!(error.contains("no-such-binary"), "{error}");
    }
}
