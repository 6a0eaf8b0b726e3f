//! Time and memory against the size of a batch and of a data set.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use cn_clip_model::{
    Clip, ClipConfig, DeviceSpec,
    checkpoint::{self, Progress},
};
use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    memory::watch,
    peers::{Measured, median},
    plot::{Line, log_log},
    release,
};

const ENCODE_IMAGE: &str = "encode-image";
const ENCODE_TEXT: &str = "encode-text";
const TRAIN_STEP: &str = "train-step";
const CHECKPOINTED: &str = "checkpointed";
const LMDB_BUILD: &str = "lmdb-build";
const EXTRACTION: &str = "extraction";
const TOP_K: &str = "top-k";
const BY_RANKS: &str = "ranks";
/// Every kind of point.
const KINDS: [&str; 8] =
    [ENCODE_IMAGE, ENCODE_TEXT, TRAIN_STEP, CHECKPOINTED, LMDB_BUILD, EXTRACTION, TOP_K, BY_RANKS];

/// Flags of `cargo xtask curves`.
#[derive(Debug, Args)]
pub struct CurvesArgs {
    /// Largest batch
    #[arg(long, default_value_t = 64)]
    largest_batch: usize,
    /// Rows of the largest data set
    #[arg(long, default_value_t = 1_000_000)]
    largest_rows: usize,
    /// A `cn-clip` built with the feature `mpi`, of which 1, 2, … ranks train by `mpirun`
    #[arg(long, value_name = "PROGRAM")]
    mpi: Option<PathBuf>,
    /// Most ranks of it
    #[arg(long, default_value_t = 2)]
    most_ranks: usize,
    /// Only these kinds of points; what is not measured again stays as curves.json has it
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    only: Vec<String>,
    /// Directory of curves.json and the plots
    #[arg(long, default_value = "docs/performance", value_name = "DIR")]
    output: PathBuf,
}

/// A measured point.
#[derive(Debug, Serialize, Deserialize)]
struct Point {
    what: String,
    /// Batch, rows or ranks.
    size: usize,
    seconds: f64,
    peak_mib: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Curves {
    machine: Machine,
    batch: Vec<Point>,
    rows: Vec<Point>,
    ranks: Vec<Point>,
}

impl Curves {
    fn new(machine: Machine) -> Self {
        Self { machine, batch: Vec::new(), rows: Vec::new(), ranks: Vec::new() }
    }
}

/// Measures and draws.
pub fn run(args: &CurvesArgs) -> anyhow::Result<()> {
    check(args)?;
    release::again()?;
    let wanted = |kind: &str| args.only.is_empty() || args.only.iter().any(|only| only == kind);
    let machine = Machine::here();
    let mut curves = match args.only.is_empty() {
        true => Curves::new(machine),
        false => earlier(&args.output.join("curves.json"), machine)?,
    };
    println!("{}", curves.machine.line());
    println!(
        "{:<14} {:>9} {:>10} {:>12} {:>10}",
        "what", "size", "seconds", "per second", "peak MiB"
    );
    let sizes = |first: usize, factor: usize, last: usize| {
        std::iter::successors(Some(first), move |size| Some(size * factor))
            .take_while(move |size| *size <= last)
    };
    for (what, case, flag) in [
        (ENCODE_IMAGE, "encode-image", None),
        (ENCODE_TEXT, "encode-text", None),
        (TRAIN_STEP, "train-step", None),
        (CHECKPOINTED, "train-step", Some("--grad-checkpointing")),
    ] {
        for batch in sizes(1, 2, args.largest_batch).filter(|_| wanted(what)) {
            let rounds = if batch <= 8 { 3 } else { 1 };
            let mut flags = vec![format!("--batch={batch}"), format!("--rounds={rounds}")];
            flags.extend(flag.map(str::to_string));
            put(&mut curves.batch, point(what, batch, &bench(case, &flags)?));
        }
    }
    for rows in sizes(1_000, 10, args.largest_rows) {
        if wanted(LMDB_BUILD) || wanted(EXTRACTION) {
            let points = data_set(rows)?;
            let points = points.into_iter().filter(|point| wanted(&point.what));
            points.for_each(|point| put(&mut curves.rows, point));
        }
        if wanted(TOP_K) {
            let measured = bench("top-k", &[format!("--pairs={rows}"), "--rounds=1".to_string()])?;
            put(&mut curves.rows, point(TOP_K, rows, &measured));
        }
    }
    if let Some(program) = args.mpi.as_ref().filter(|_| wanted(BY_RANKS)) {
        for ranks in sizes(1, 2, args.most_ranks) {
            put(&mut curves.ranks, ranks_step(program, ranks)?);
        }
    }
    draw(&curves, &args.output)
}

fn check(args: &CurvesArgs) -> anyhow::Result<()> {
    if let Some(kind) = args.only.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        bail!("--only {kind}: kinds are {}", KINDS.join(", "));
    }
    if args.mpi.is_none() && args.only.iter().any(|kind| kind == BY_RANKS) {
        bail!("--only {BY_RANKS} needs --mpi PROGRAM, a cn-clip built with the feature mpi");
    }
    Ok(())
}

/// The points that a file holds, measured on this machine; none where there is no file.
fn earlier(path: &Path, machine: Machine) -> anyhow::Result<Curves> {
    if !path.exists() {
        return Ok(Curves::new(machine));
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let curves: Curves = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let (here, there) = (&machine.processor, &curves.machine.processor);
    if here != there {
        bail!(
            "{} was measured on {there}, and this is {here}: leave --only out, or give another \
             --output",
            path.display()
        );
    }
    Ok(Curves { machine, ..curves })
}

/// Puts a point at its place, by kind and size, of which an earlier one is removed.
fn put(points: &mut Vec<Point>, point: Point) {
    points.retain(|other| (&other.what, other.size) != (&point.what, point.size));
    points.push(point);
    let kind = |point: &Point| KINDS.iter().position(|kind| *kind == point.what);
    points.sort_by_key(|point| (kind(point), point.size));
}

/// A point at which each time is that of as many items as its size.
fn point(what: &str, size: usize, measured: &Measured) -> Point {
    point_of(size, what, size, measured)
}

fn point_of(items: usize, what: &str, size: usize, measured: &Measured) -> Point {
    let (seconds, peak_mib) = (median(&measured.seconds), measured.peak_mib);
    let rate = items as f64 / seconds;
    println!("{what:<14} {size:>9} {seconds:>10.3} {rate:>12.1} {peak_mib:>10.0}");
    Point { what: what.to_string(), size, seconds, peak_mib }
}

fn bench(case: &str, flags: &[String]) -> anyhow::Result<Measured> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--case", case]).args(flags).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("reading what {command:?} says"))
}

/// A training step of 8 pairs of ViT-B-16 and RoBERTa-base by ranks that share them; the memory is
/// that of one rank.
fn ranks_step(program: &Path, ranks: usize) -> anyhow::Result<Point> {
    const PAIRS: usize = 8;
    const STEPS: usize = 5;
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    write_split(directory, PAIRS * STEPS)?;
    let mut build = Command::new(program);
    build.args(["build-lmdb-dataset", "--splits", "rows", "--data-dir"]).arg(directory);
    timed(build)?;
    let mut train = Command::new("mpirun");
    train.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
    train.arg(ranks.to_string()).arg(program).args(["train", "--name=ranks", "--log-interval=1"]);
    train.arg(format!("--batch-size={}", PAIRS / ranks)).arg(format!("--max-steps={STEPS}"));
    train.arg("--logs").arg(directory.join("logs"));
    train.arg("--train-data").arg(directory.join("lmdb/rows"));
    // Ranks divide the processor.
    let threads = std::thread::available_parallelism()?.get();
    train.env("RAYON_NUM_THREADS", (threads / ranks).max(1).to_string());
    timed(train)?;
    let path = directory.join("logs/ranks/metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines: Vec<Logged> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // The first step includes the start of everything.
    let seconds: Vec<f64> = lines.iter().skip(1).map(|line| line.batch_seconds).collect();
    let peak_mib = lines.iter().map(|line| line.memory_mib).fold(0.0, f64::max);
    if seconds.is_empty() {
        bail!("{}: no steps", path.display());
    }
    Ok(point_of(PAIRS, BY_RANKS, ranks, &Measured { seconds, peak_mib }))
}

/// What a training run logs of a step.
#[derive(serde::Deserialize)]
struct Logged {
    batch_seconds: f64,
    memory_mib: f64,
}

/// LMDB build and extraction of so many pictures of 32 x 32, with a ViT of one narrow block.
fn data_set(rows: usize) -> anyhow::Result<[Point; 2]> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    write_split(directory, rows)?;
    let config = small_model(directory)?;
    let program = release::program()?;
    let mut build = Command::new(&program);
    build.args(["build-lmdb-dataset", "--splits", "rows", "--data-dir"]).arg(directory);
    let build = point(LMDB_BUILD, rows, &timed(build)?);
    let mut extract = Command::new(&program);
    extract.args(["extract-features", "--extract-image-feats", "--image-data"]);
    extract.arg(directory.join("lmdb/rows/imgs"));
    extract.arg("--image-feat-output-path").arg(directory.join("features.jsonl"));
    extract.arg("--resume").arg(directory.join("weights.pt"));
    extract.arg("--vision-model").arg(&config[0]).arg("--text-model").arg(&config[1]);
    Ok([build, point(EXTRACTION, rows, &timed(extract)?)])
}

fn timed(mut command: Command) -> anyhow::Result<Measured> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let peak_mib = watch(&mut child)?;
    let seconds = start.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Measured { seconds: vec![seconds], peak_mib })
}

fn write_split(directory: &Path, rows: usize) -> anyhow::Result<()> {
    let create = |name: &str| -> anyhow::Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(directory.join(name)).context("a data set to measure")?))
    };
    let (mut pictures, mut texts) = (create("rows_imgs.tsv")?, create("rows_texts.jsonl")?);
    for row in 0..rows {
        writeln!(pictures, "{row}\t{}", STANDARD.encode(bitmap(row)))?;
        writeln!(texts, "{{\"text_id\": {row}, \"text\": \"图{row}\", \"image_ids\": [{row}]}}")?;
    }
    pictures.flush()?;
    texts.flush()?;
    Ok(())
}

/// A BMP file of 32 x 32 pixels that depends on the number.
fn bitmap(number: usize) -> Vec<u8> {
    const SIDE: u32 = 32;
    let pixels = (SIDE * SIDE * 3) as usize;
    let mut file = b"BM".to_vec();
    for value in
        [54 + pixels as u32, 0, 54, 40, SIDE, SIDE, 1 | (24 << 16), 0, pixels as u32, 0, 0, 0, 0]
    {
        file.extend(value.to_le_bytes());
    }
    let mut state = number as u32;
    file.extend((0..pixels).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    file
}

/// Configuration files of a model that costs next to nothing, and its weights.
fn small_model(directory: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let config = ClipConfig::published("ViT-B-16")?;
    let (mut vision, mut text) = (config.vision, config.text);
    (vision.image_resolution, vision.embed_dim) = (32, 64);
    vision.layers = cn_clip_model::config::VisionLayers::Transformer(1);
    vision.width = 64;
    (text.hidden_size, text.layers, text.heads, text.intermediate_size) = (64, 1, 1, 64);
    let paths = [directory.join("vision.json"), directory.join("text.json")];
    fs::write(&paths[0], serde_json::to_vec(&vision)?)?;
    fs::write(&paths[1], serde_json::to_vec(&text)?)?;
    let model = Clip::init(&ClipConfig { vision, text }, &"cpu".parse::<DeviceSpec>()?.open()?, 0);
    checkpoint::save(&directory.join("weights.pt"), &model, &Progress::default(), None)?;
    Ok(paths)
}

fn draw(curves: &Curves, output: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    let write = |name: &str, text: String| {
        let path = output.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    write("curves.json", serde_json::to_string_pretty(curves)? + "\n")?;
    let seconds: fn(&Point) -> f64 = |point| point.seconds;
    let peak: fn(&Point) -> f64 = |point| point.peak_mib;
    for (name, title, x, y, points, value) in [
        ("batch-time.svg", "Time of a batch", "batch", "seconds", &curves.batch, seconds),
        ("batch-memory.svg", "Memory by batch", "batch", "MiB", &curves.batch, peak),
        ("rows-time.svg", "Time by size of data set", "rows", "seconds", &curves.rows, seconds),
        ("rows-memory.svg", "Memory by size of data set", "rows", "MiB", &curves.rows, peak),
        ("ranks-time.svg", "Time of a step of 8 pairs", "ranks", "seconds", &curves.ranks, seconds),
        ("ranks-memory.svg", "Memory of a rank", "ranks", "MiB", &curves.ranks, peak),
    ] {
        if points.is_empty() {
            continue;
        }
        write(name, log_log(title, x, y, &lines(points, value))?)?;
    }
    Ok(())
}

/// A line for each kind, in order of their first points.
fn lines(points: &[Point], value: fn(&Point) -> f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for point in points {
        let place = (point.size as f64, value(point));
        match lines.iter_mut().find(|(name, _)| *name == point.what) {
            Some((_, line)) => line.push(place),
            None => lines.push((point.what.clone(), vec![place])),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use cn_clip_data::image::ImageTransform;

    use super::*;

    #[test]
    fn pictures_are_read_and_differ() {
        let transform = ImageTransform::new(32);
        let pixels = |number| transform.pixels(&bitmap(number)).unwrap();
        assert_eq!(pixels(1).len(), 3 * 32 * 32);
        assert_ne!(pixels(1), pixels(2));
    }

    #[test]
    fn a_line_for_each_kind() {
        let point =
            |what: &str, size| Point { what: what.to_string(), size, seconds: 2.0, peak_mib: 3.0 };
        let points = [point("a", 1), point("b", 1), point("a", 10)];
        let lines = lines(&points, |point| point.seconds);
        assert_eq!(lines[0], ("a".to_string(), vec![(1.0, 2.0), (10.0, 2.0)]));
        assert_eq!(lines[1], ("b".to_string(), vec![(1.0, 2.0)]));
    }

    #[test]
    fn what_is_not_measured_again_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("curves.json");
        let point = |what: &str, size, seconds| Point {
            what: what.to_string(),
            size,
            seconds,
            peak_mib: 3.0,
        };
        let curves = Curves {
            machine: Machine::here(),
            batch: vec![
                point(ENCODE_TEXT, 1, 2.0),
                point(TRAIN_STEP, 1, 2.0),
                point(TRAIN_STEP, 4, 2.0),
                point(CHECKPOINTED, 1, 2.0),
            ],
            rows: vec![point(TOP_K, 1, 2.0)],
            ranks: vec![point(BY_RANKS, 1, 2.0)],
        };
        fs::write(&path, serde_json::to_vec(&curves).unwrap()).unwrap();
        let none = earlier(&directory.path().join("none.json"), Machine::here()).unwrap();
        assert_eq!((none.batch.len(), none.rows.len(), none.ranks.len()), (0, 0, 0));
        let mut curves = earlier(&path, Machine::here()).unwrap();
        assert_eq!((curves.rows.len(), curves.ranks.len()), (1, 1));
        put(&mut curves.batch, point(TRAIN_STEP, 1, 5.0));
        put(&mut curves.batch, point(TRAIN_STEP, 2, 6.0));
        let points: Vec<_> =
            curves.batch.iter().map(|point| (&*point.what, point.size, point.seconds)).collect();
        let expected = [
            (ENCODE_TEXT, 1, 2.0),
            (TRAIN_STEP, 1, 5.0),
            (TRAIN_STEP, 2, 6.0),
            (TRAIN_STEP, 4, 2.0),
            (CHECKPOINTED, 1, 2.0),
        ];
        assert_eq!(points, expected);

        let elsewhere = Machine { processor: "another".to_string(), ..Machine::here() };
        let error = earlier(&path, elsewhere).unwrap_err().to_string();
        assert!(error.contains("was measured on"), "{error}");
    }

    #[test]
    fn ranks_need_a_program() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: CurvesArgs,
        }
        let line = <Line as clap::Parser>::parse_from(["curves", "--only", BY_RANKS]);
        let error = check(&line.args).unwrap_err().to_string();
        assert!(error.contains("--mpi PROGRAM"), "{error}");
    }
}
