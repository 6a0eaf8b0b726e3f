//! Size of the program, time to its help, and where the time of an encode run goes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_model::{Clip, ClipConfig, DeviceSpec, Pass};

use crate::{
    flops, machine::Machine, peers::median, registers, release, sampling::Profile,
    training::random_batch,
};

/// Largest program we want, in MB.
const LARGEST: f64 = 40.0;
/// Longest time to the help, in ms.
const LONGEST: f64 = 20.0;

/// Flags of `cargo xtask size`.
#[derive(Debug, Args)]
pub struct SizeArgs {
    /// Starts of the program
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// Seconds of encoding that are sampled, by perf; 0: none
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Pictures of a batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
}

/// Measures; fails where the program is too large.
pub fn run(args: &SizeArgs) -> anyhow::Result<()> {
    release::again()?;
    println!("{}", Machine::here().line());
    let directory = tempfile::tempdir()?;
    let program = release::program()?;
    let bytes = stripped(&program, directory.path())?;
    let megabytes = bytes as f64 / 1e6;
    println!("stripped program   {megabytes:8.1} MB   (at most {LARGEST})");
    println!("cn-clip --help     {:8.1} ms   (at most {LONGEST})", help(&program, args.starts)?);
    if args.seconds > 0 {
        breakdown(args, &directory.path().join("perf.data"))?;
    }
    if megabytes > LARGEST {
        bail!("the program is larger than {LARGEST} MB");
    }
    Ok(())
}

fn stripped(program: &Path, directory: &Path) -> anyhow::Result<u64> {
    let copy: PathBuf = directory.join("stripped");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    if !status.context("starting strip")?.success() {
        bail!("strip failed");
    }
    Ok(fs::metadata(&copy)?.len())
}

/// Median milliseconds, after one start that is not counted.
fn help(program: &Path, starts: usize) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for start in 0..=starts {
        let clock = Instant::now();
        let status = Command::new(program).arg("--help").stdout(Stdio::null()).status();
        if !status.context("starting cn-clip")?.success() {
            bail!("cn-clip --help failed");
        }
        if start > 0 {
            times.push(clock.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(median(&times))
}

/// Samples this process while it encodes.
fn breakdown(args: &SizeArgs, data: &Path) -> anyhow::Result<()> {
    let config = ClipConfig::published("ViT-B-16")?;
    let device = "cpu".parse::<DeviceSpec>()?.open()?;
    let model = Clip::init(&config, &device, 0);
    let batch = random_batch(&config, args.batch, 52);
    let encode = || model.encode_image(batch.pixels(&device), None, Pass::Eval).into_data();
    encode();
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "--freq=997", "--pid"]).arg(std::process::id().to_string());
    perf.arg("--output").arg(data).args(["--", "sleep"]).arg(args.seconds.to_string());
    let mut perf = perf.spawn().context("starting perf (Linux: package linux-perf)")?;
    let (clock, mut runs) = (Instant::now(), 0);
    let status = loop {
        encode();
        runs += 1;
        if let Some(status) = perf.try_wait()? {
            break status;
        }
    };
    if !status.success() {
        bail!("perf record failed: {status}");
    }
    let rate = (runs * args.batch) as f64 / clock.elapsed().as_secs_f64();
    println!("\nencoding of {} pictures at a time, {rate:.2} pictures/s while sampled", args.batch);
    if let Some(operations) = flops::image_features(&config.vision) {
        let (asked, most) = (rate * operations / 1e9, registers::gflops());
        println!(
            "products that the features need {asked:.0} GFLOP/s, multiply-adds in registers {most:.0}: \
             {:.0} %",
            100.0 * asked / most
        );
    }
    Profile::read(data)?.print();
    Ok(())
}
