//! `cargo xtask bench-convert`: time and memory of conversion and of loading, on random weights.

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args;
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{self, Checkpoint, ConvertOptions, Format, convert, parameters},
};
use cn_clip_train::metrics::peak_memory_mib;
use serde_json::{Value, json};

/// Flags of `cargo xtask bench-convert`.
#[derive(Debug, Args)]
pub struct BenchConvertArgs {
    /// Model that is converted
    #[arg(long, default_value = "ViT-H-14")]
    convert_model: String,
    /// Model that is loaded
    #[arg(long, default_value = "ViT-B-16")]
    load_model: String,
    /// Times that it is loaded after the first
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Directory for the weights, removed at the end
    #[arg(long, default_value = "target/bench-convert")]
    directory: PathBuf,
    /// Convert this file to that form only, and print figures as JSON
    #[arg(long, hide = true, num_args = 3, value_names = ["INPUT", "OUTPUT", "FORM"])]
    one: Option<Vec<String>>,
    /// Load this file only
    #[arg(long, hide = true)]
    load: Option<PathBuf>,
}

/// Converts from form to form, each in a process of its own so that its peak memory is its own.
pub fn run(args: &BenchConvertArgs) -> anyhow::Result<()> {
    if let Some([input, output, form]) = args.one.as_deref() {
        return one(input.as_ref(), output.as_ref(), form);
    }
    if let Some(path) = &args.load {
        return load(path, args);
    }
    fs::create_dir_all(&args.directory)?;
    let result = measure(args);
    fs::remove_dir_all(&args.directory)?;
    result
}

fn measure(args: &BenchConvertArgs) -> anyhow::Result<()> {
    let path = |name: &str| args.directory.join(name);
    let weights = path("random.safetensors");
    println!("{}", args.convert_model);
    println!(
        "{:<28} {:>9} {:>11} {:>10} {:>7}",
        "conversion", "seconds", "output MiB", "peak MiB", "ratio"
    );
    random(&ClipConfig::published(&args.convert_model)?, &weights)?;
    let mut input = weights.clone();
    for (name, form) in [
        ("a.pt", "official"),
        ("b.bpk", "burn"),
        ("hub", "huggingface"),
        ("d.pt", "official"),
        ("e.safetensors", "safetensors"),
    ] {
        let output = path(name);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-convert").arg("--one").args([&input, &output]).arg(form);
        let found = json_of(command)?;
        let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
        let (seconds, bytes, peak) = (number("seconds"), number("bytes"), number("peak_mib"));
        let mib = bytes / f64::from(1 << 20);
        let from = input.file_name().unwrap_or_default().to_string_lossy();
        println!(
            "{:<28} {seconds:>9.2} {mib:>11.0} {peak:>10.0} {:>7.3}",
            format!("{from} to {form}"),
            peak / mib
        );
        remove(&input)?;
        input = output;
    }
    remove(&input)?;

    println!("\n{}", args.load_model);
    println!("{:<28} {:>9} {:>9} {:>10}", "loading, in seconds", "first", "again", "peak MiB");
    random(&ClipConfig::published(&args.load_model)?, &weights)?;
    for (name, form) in [("a.pt", Format::Official), ("b.bpk", Format::Burn)] {
        let file = path(name);
        convert(&weights, &file, &ConvertOptions::new(form))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-convert", "--rounds", &args.rounds.to_string()]);
        command.args(["--load-model", &args.load_model, "--load"]).arg(&file);
        let found = json_of(command)?;
        let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
        let (first, again, peak) = (number("first"), number("again"), number("peak_mib"));
        println!("{form:<28} {first:>9.3} {again:>9.3} {peak:>10.0}");
    }
    Ok(())
}

fn one(input: &Path, output: &Path, form: &str) -> anyhow::Result<()> {
    let Ok(format) = form.parse() else { bail!("no form {form}") };
    let start = Instant::now();
    let converted = convert(input, output, &ConvertOptions::new(format))?;
    let seconds = start.elapsed().as_secs_f64();
    let peak_mib = peak_memory_mib();
    println!("{}", json!({"seconds": seconds, "bytes": converted.bytes, "peak_mib": peak_mib}));
    Ok(())
}

/// The first time in a process, and once memory is there.
fn load(path: &Path, args: &BenchConvertArgs) -> anyhow::Result<()> {
    let config = ClipConfig::published(&args.load_model)?;
    let mut seconds = Vec::new();
    for _ in 0..=args.rounds {
        let start = Instant::now();
        let model = Clip::init(&config, &Device::default(), 0);
        let model = checkpoint::load(model, &Checkpoint::open(path)?)?;
        seconds.push(start.elapsed().as_secs_f64());
        drop(model);
    }
    let again = crate::peers::median(&seconds[1..]);
    let peak_mib = peak_memory_mib();
    println!("{}", json!({"first": seconds[0], "again": again, "peak_mib": peak_mib}));
    Ok(())
}

fn json_of(mut command: Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Writes random weights in fp32, as a safetensors file with official keys.
fn random(config: &ClipConfig, path: &Path) -> anyhow::Result<()> {
    let specs = parameters(&Clip::init(config, &Device::default(), 0));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for spec in &specs {
        let (start, shape) = (end, spec.official_shape());
        end += 4 * spec.count();
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(spec.key.clone(), info);
    }
    let header = Value::from(header).to_string();
    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut state = 1u32;
    for _ in 0..end / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(out.flush()?)
}
