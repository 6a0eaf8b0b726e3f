//! Our training step and PyTorch's on the same machine in the same run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

/// The peer, as the Python program requires it.
const PACKAGES: [&str; 2] = ["torch==2.4.1", "numpy==1.26.4"];

/// Flags of `cargo xtask bench-peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Pairs of a batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Alternations of the two programs
    #[arg(long, default_value_t = 3)]
    alternations: usize,
    /// Measured steps of a program each time, after one to warm up
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// A Python with PyTorch; made in target/peers when not given
    #[arg(long)]
    python: Option<PathBuf>,
    /// File for the figures
    #[arg(long, default_value = "target/peers/train_step.json")]
    output: PathBuf,
}

/// What a program prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds of each step.
    pub seconds: Vec<f64>,
    /// Most memory the process has held, in MiB.
    pub peak_mib: f64,
}

#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    ours: Measured,
    torch: Measured,
    time_ratio: f64,
    memory_ratio: f64,
}

/// Runs both.
pub fn run(args: &PeersArgs) -> anyhow::Result<()> {
    if args.batch == 0 || args.alternations == 0 || args.rounds == 0 {
        bail!("--batch, --alternations and --rounds must be at least 1");
    }
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(Path::new("target/peers"), &PACKAGES)?,
    };
    let threads = thread::available_parallelism()?.get();
    println!("training step, ViT-B-16 + RoBERTa-base, batch {}, {threads} threads", args.batch);
    println!(
        "{:<14} {:>8} {:>8} {:>7} {:>10} {:>10} {:>7}",
        "case", "ours s", "torch s", "ratio", "ours MiB", "torch MiB", "ratio"
    );
    let mut cases = Vec::new();
    for (name, flags) in [
        ("plain", &[][..]),
        ("checkpointing", &["--grad-checkpointing"]),
        ("mask 0.5", &["--mask-ratio=0.5"]),
    ] {
        let (mut ours, mut torch) = (Vec::new(), Vec::new());
        for _ in 0..args.alternations {
            let common = [format!("--batch={}", args.batch), format!("--rounds={}", args.rounds)];
            let mut command = Command::new(env::current_exe().context("finding this program")?);
            command.args(["bench", "--case=train-step", "--json"]).args(flags).args(&common);
            ours.push(measure(command)?);
            let mut command = Command::new(&python);
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/train_step.py");
            command.arg(script).args(flags).args(&common).arg(format!("--threads={threads}"));
            torch.push(measure(command)?);
        }
        let (ours, torch) = (join(ours), join(torch));
        let (a, b) = (median(&ours.seconds), median(&torch.seconds));
        let (time_ratio, memory_ratio) = (b / a, ours.peak_mib / torch.peak_mib);
        println!(
            "{name:<14} {a:>8.2} {b:>8.2} {time_ratio:>6.2}x {:>10.0} {:>10.0} {memory_ratio:>7.2}",
            ours.peak_mib, torch.peak_mib
        );
        cases.push(Case { name, ours, torch, time_ratio, memory_ratio });
    }
    if let Some(parent) = args.output.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let text = serde_json::to_string_pretty(&cases)?;
    fs::write(&args.output, text).with_context(|| args.output.display().to_string())
}

/// A virtual environment with a peer.
pub fn environment(directory: &Path, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let venv = directory.join("venv");
    let python = venv.join("bin/python");
    if !python.is_file() {
        check(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        check(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    }
    Ok(python)
}

fn check(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs a program and reads what it has measured.
pub fn measure(mut command: Command) -> anyhow::Result<Measured> {
    command.stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("reading what {command:?} says"))
}

/// All seconds, and the highest peak.
pub fn join(parts: Vec<Measured>) -> Measured {
    let peak_mib = parts.iter().map(|part| part.peak_mib).fold(0.0, f64::max);
    Measured { seconds: parts.into_iter().flat_map(|part| part.seconds).collect(), peak_mib }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
