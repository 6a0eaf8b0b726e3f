//! The same work by this program, by PyTorch and by onnxruntime, on one machine in one run.

mod cases;
mod inputs;
mod ours;
mod process;
mod report;
mod whole;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_model::{DeviceSpec, Precision};
use serde::{Deserialize, Serialize};

pub use ours::{WorkerArgs, run as worker};

use cases::{Case, Contender, Work};
use process::Worker;
use report::{Report, Timing};

use crate::{machine::Machine, release};

/// The peers, PyTorch as the Python program requires it.
const PACKAGES: [&str; 5] = ["torch==2.4.1", "numpy==1.26.4", "onnx", "onnxruntime", "pillow"];
/// Greatest difference of outputs beside the largest value.
const TOLERANCE: f32 = 1e-3;
/// The same for bf16, of whose products eight bits count.
const TOLERANCE_BF16: f32 = 0.1;
/// The same for whole numbers of 13 bits.
const TOLERANCE_INT16: f32 = 2e-2;
/// Lets the threads of the one before fall asleep.
const PAUSE: Duration = Duration::from_millis(200);
/// Seconds that a turn of short work takes, and the most passes it is then.
const TURN: f64 = 0.5;
const MOST_PASSES: usize = 8;

/// Flags of `cargo xtask bench --peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Only the cases whose name begins so; repeat for more
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Two alternations, one where a run takes minutes
    #[arg(long)]
    quick: bool,
    /// Alternations of the contenders
    #[arg(long, default_value_t = 5)]
    alternations: usize,
    /// PyTorch in bf16 even where the processor has no instructions for it, which takes minutes
    #[arg(long)]
    bf16: bool,
    /// A Python with the peers; made in the directory when not given
    #[arg(long)]
    python: Option<PathBuf>,
    /// Weights, inputs, Python and the figures
    #[arg(long, default_value = "target/peers", value_name = "DIR")]
    directory: PathBuf,
    /// List the cases and end
    #[arg(long)]
    list: bool,
}

/// What a measured program prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds of each round.
    pub seconds: Vec<f64>,
    /// Most memory the process has held, in MiB.
    pub peak_mib: f64,
}

/// Where everything is.
struct Setting {
    directory: PathBuf,
    python: PathBuf,
    threads: usize,
}

/// Runs the contenders.
pub fn run(args: &PeersArgs) -> anyhow::Result<()> {
    let chosen = |name: &str| {
        args.case.is_empty() || args.case.iter().any(|prefix| name.starts_with(prefix))
    };
    let bf16 = args.bf16 || Machine::here().vectors.iter().any(|set| set.ends_with("bf16"));
    let int16 = Precision::Int16.is_supported(&DeviceSpec::CPU.open()?);
    let reduced = [(Contender::TorchBf16, bf16), (Contender::OursInt16, int16)];
    let reduced: Vec<_> = reduced.into_iter().filter(|(_, runs)| *runs).map(|(c, _)| c).collect();
    let cases = cases::all(&reduced).into_iter().filter(|case| chosen(case.name));
    let cases: Vec<Case> = cases.collect();
    if args.list {
        cases.iter().for_each(|case| println!("{:<24} {}", case.name, case.about));
        return Ok(());
    }
    if args.alternations == 0 || cases.is_empty() {
        bail!("--alternations must be at least 1 and --case the beginning of a name of --list");
    }
    release::again()?;
    let directory = std::path::absolute(&args.directory)?;
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(&directory, &PACKAGES)?,
    };
    let setting = Setting { directory, python, threads: thread::available_parallelism()?.get() };
    inputs::prepare(&setting)?;
    let mut report = Report::new(&setting)?;
    println!("{}", report.machine());
    println!("{}", report::HEAD);
    for case in &cases {
        let alternations = match (args.quick, case.slow) {
            (true, true) => 1,
            (true, false) => args.alternations.min(2),
            (false, true) => args.alternations.min(3),
            (false, false) => args.alternations,
        };
        let timings = match &case.work {
            Work::Whole(program) => whole::run(&setting, *program, case, alternations)?,
            _ => persistent(&setting, case, alternations)?,
        };
        report.add(case, timings);
        report.write(&setting.directory)?;
    }
    println!("figures and chart: {}", setting.directory.join("peers.html").display());
    Ok(())
}

/// Contenders that stay and are told what to do.
fn persistent(setting: &Setting, case: &Case, alternations: usize) -> anyhow::Result<Vec<Timing>> {
    let errors = match case.work.checked() {
        Some(check) => {
            let mut workers = start(setting, case)?;
            let mut outputs = Vec::new();
            for (contender, worker) in &mut workers {
                outputs.push(worker.outputs(&check, *contender, setting, case.checks)?);
            }
            compare(case, &outputs)?
        }
        None => vec![0.0; case.contenders.len()],
    };
    let mut workers = start(setting, case)?;
    let mut timings: Vec<Timing> = case
        .contenders
        .iter()
        .zip(errors)
        .map(|(contender, error)| Timing::new(*contender, error))
        .collect();
    // The first turn is not counted. Its first pass opens files and fills caches; a second tells how long
    // work takes of which a turn may do more than one pass.
    let mut passes = vec![if case.slow { 1 } else { 2 }; workers.len()];
    for round in 0..=alternations {
        for turn in 0..workers.len() {
            let index = (turn + round) % workers.len();
            thread::sleep(PAUSE);
            for _ in 0..passes[index] {
                let answer = workers[index].1.run(&case.work, None)?;
                match round {
                    0 => passes[index] = passes_of_a_turn(answer.seconds),
                    _ => timings[index].add(answer.seconds, answer.peak_mib),
                }
            }
        }
    }
    Ok(timings)
}

/// How often work of so many seconds is done in a turn: all of them count, as a few short ones say
/// little.
fn passes_of_a_turn(seconds: f64) -> usize {
    ((TURN / seconds) as usize).clamp(1, MOST_PASSES)
}

fn start(setting: &Setting, case: &Case) -> anyhow::Result<Vec<(Contender, Worker)>> {
    let worker = |contender: &Contender| Ok((*contender, Worker::start(setting, *contender)?));
    case.contenders.iter().map(worker).collect()
}

/// Differences from ours beside the largest value of ours.
fn compare(case: &Case, outputs: &[Vec<f32>]) -> anyhow::Result<Vec<f32>> {
    let Some(ours) = outputs.first() else { return Ok(Vec::new()) };
    let largest = ours.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let mut errors = Vec::new();
    for (contender, output) in case.contenders.iter().zip(outputs) {
        if output.len() != ours.len() || largest == 0.0 {
            bail!("{}: {contender} gives {} values, we {}", case.name, output.len(), ours.len());
        }
        let difference = |(a, b): (&f32, &f32)| (a - b).abs() / largest;
        // A NaN is the largest of all.
        let error = output.iter().zip(ours).map(difference).max_by(f32::total_cmp);
        let error = error.unwrap_or(f32::NAN);
        let tolerance = match contender {
            Contender::TorchBf16 => TOLERANCE_BF16,
            Contender::OursInt16 => TOLERANCE_INT16,
            _ => TOLERANCE,
        };
        if error.is_nan() || error > tolerance {
            bail!("{}: {contender} differs from us by {error:.2e} of the largest", case.name);
        }
        errors.push(error);
    }
    Ok(errors)
}

/// A virtual environment with peers.
pub fn environment(directory: &Path, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let venv = directory.join("venv");
    let python = venv.join("bin/python");
    let whole = venv.join("whole");
    if !whole.is_file() {
        check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        check(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
        std::fs::write(&whole, "").with_context(|| whole.display().to_string())?;
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

/// This program.
fn own() -> anyhow::Result<PathBuf> {
    env::current_exe().context("finding this program")
}

/// One of the scripts, to be given its flags; it leaves no files beside itself.
pub fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name));
    command
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        cases::all(&[]).remove(0)
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn short_work_is_repeated_in_a_turn() {
        for (seconds, passes) in [(0.0, 8), (0.01, 8), (0.08, 6), (0.25, 2), (0.4, 1), (90.0, 1)] {
            assert_eq!(passes_of_a_turn(seconds), passes, "{seconds}");
        }
    }

    #[test]
    fn outputs_that_differ_are_not_timed() {
        let ours = vec![1.0, -2.0];
        let near = vec![1.0, -2.001];
        let count = case().contenders.len();
        let mut outputs = vec![ours.clone(); count];
        assert_eq!(compare(&case(), &outputs).unwrap(), vec![0.0; count]);
        outputs[1] = near;
        assert!(compare(&case(), &outputs).unwrap()[1] > 4e-4);
        for wrong in [vec![1.0, -1.9], vec![1.0, f32::NAN], vec![1.0]] {
            outputs[1] = wrong;
            assert!(compare(&case(), &outputs).is_err());
        }
    }
}
