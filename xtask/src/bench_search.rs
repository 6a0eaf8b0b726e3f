//! Exact search beside FAISS, and beside the rate of plain matrix products, in the same run.

use std::{
    env,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, bail};
use burn::tensor::{Device, Distribution, Tensor};
use clap::{Args, ValueEnum};
use cn_clip_eval::{
    DEFAULT_BLOCK,
    features::{Modality, open},
    knn::for_each_top_k,
    predictions::{Direction, PredictionWriter},
};
use cn_clip_train::metrics::peak_memory_mib;
use serde::Serialize;

use crate::peers::{Measured, environment, median, script};

/// The peer.
const PACKAGES: [&str; 2] = ["faiss-cpu", "numpy"];
/// Results for each query.
const TOP_K: usize = 10;
/// Queries and candidates of the search from JSON lines.
const SMALL: usize = 5000;
/// Side of the matrices whose product is timed.
const SIDE: usize = 4096;
/// Where files are made.
const DIRECTORY: &str = "target/peers/search";

/// Flags of `cargo xtask bench-search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// Candidates of the search from arrays
    #[arg(long, default_value_t = 1_000_000)]
    candidates: usize,
    /// Queries of the search from arrays
    #[arg(long, default_value_t = 1000)]
    queries: usize,
    /// Values of a feature
    #[arg(long, default_value_t = 512)]
    dim: usize,
    /// Alternations of the programs
    #[arg(long, default_value_t = 3)]
    alternations: usize,
    /// A Python with FAISS; made in target/peers/search when not given
    #[arg(long)]
    python: Option<PathBuf>,
    /// File for the figures
    #[arg(long, default_value = "target/peers/search.json")]
    output: PathBuf,
    /// Measure one thing and print it as JSON
    #[arg(long, value_enum, hide = true)]
    case: Option<Case>,
    /// Queries of that
    #[arg(long, hide = true, default_value = ".")]
    query_file: PathBuf,
    /// Candidates of that
    #[arg(long, hide = true, default_value = ".")]
    candidate_file: PathBuf,
    /// Predictions of that
    #[arg(long, hide = true, default_value = ".")]
    predictions: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Case {
    /// A product of two square matrices
    Product,
    /// Search and predictions
    Search,
}

#[derive(Debug, Serialize)]
struct Comparison {
    name: &'static str,
    /// Share of the queries with the same ids in the same order.
    same: f64,
    ours: Measured,
    ours_process: Vec<f64>,
    faiss: Measured,
    faiss_process: Vec<f64>,
    /// Billions of operations in a second: of the search, and of a plain product.
    rate: f64,
    product_rate: f64,
}

/// Runs both.
pub fn run(args: &SearchArgs) -> anyhow::Result<()> {
    match args.case {
        Some(Case::Product) => return print(product()),
        Some(Case::Search) => return print(args.search()?),
        None => {}
    }
    if args.alternations == 0 || args.queries == 0 || args.candidates < TOP_K || args.dim == 0 {
        bail!("--alternations, --queries and --dim must be at least 1, --candidates {TOP_K}");
    }
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(Path::new(DIRECTORY), &PACKAGES)?,
    };
    let threads = thread::available_parallelism()?.get();
    println!("exact search, top {TOP_K}, {} values, {threads} threads", args.dim);
    println!(
        "{:<12} {:>8} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>8} {:>8}",
        "files",
        "ours s",
        "faiss s",
        "ratio",
        "process",
        "process",
        "ratio",
        "of rate",
        "ours MiB",
        "faiss MiB",
        "GFLOP/s",
        "same"
    );
    let files = [
        ("jsonl", SMALL, SMALL, jsonl as fn(&Path, &str, usize, usize) -> anyhow::Result<()>),
        ("npy", args.queries, args.candidates, npy),
    ];
    let mut comparisons = Vec::new();
    for (ending, queries, candidates, write) in files {
        let (query_file, candidate_file) = args.files(ending, queries, candidates, write)?;
        let found = args.compare(
            ending,
            &query_file,
            &candidate_file,
            &python,
            threads,
            (queries, candidates),
        )?;
        found.print();
        comparisons.push(found);
    }
    fs::write(&args.output, serde_json::to_string_pretty(&comparisons)?)
        .with_context(|| args.output.display().to_string())
}

impl SearchArgs {
    /// Makes the two files, unless they are there.
    fn files(
        &self,
        ending: &str,
        queries: usize,
        candidates: usize,
        write: fn(&Path, &str, usize, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<(PathBuf, PathBuf)> {
        fs::create_dir_all(DIRECTORY).context(DIRECTORY)?;
        let file = |key: &str, rows: usize| -> anyhow::Result<PathBuf> {
            let name = format!("{key}_{rows}_{}.{ending}", self.dim);
            let path = Path::new(DIRECTORY).join(name);
            if !path.exists() {
                // What an interrupted run leaves must not pass for data.
                let part = path.with_extension("part");
                write(&part, key, rows, self.dim).with_context(|| part.display().to_string())?;
                fs::rename(&part, &path).with_context(|| path.display().to_string())?;
            }
            Ok(path)
        };
        Ok((file("text_id", queries)?, file("image_id", candidates)?))
    }

    fn compare(
        &self,
        name: &'static str,
        query_file: &Path,
        candidate_file: &Path,
        python: &Path,
        threads: usize,
        (queries, candidates): (usize, usize),
    ) -> anyhow::Result<Comparison> {
        let program = env::current_exe().context("finding this program")?;
        let predictions = |who: &str| Path::new(DIRECTORY).join(format!("{name}.{who}.jsonl"));
        let [mut ours, mut faiss, mut products] = [(); 3].map(|()| Vec::new());
        let [mut ours_process, mut faiss_process] = [(); 2].map(|()| Vec::new());
        for _ in 0..self.alternations {
            let mut command = Command::new(&program);
            command.args(["bench-search", "--case=product"]);
            products.push(measure(command)?);
            let mut command = Command::new(&program);
            command.args(["bench-search", "--case=search", "--query-file"]).arg(query_file);
            command.arg("--candidate-file").arg(candidate_file);
            command.arg("--predictions").arg(predictions("ours"));
            timed(command, &mut ours, &mut ours_process)?;
            let mut command = script(python, "search.py");
            command.arg("--queries").arg(query_file).arg("--candidates").arg(candidate_file);
            command.arg("--output").arg(predictions("faiss"));
            command.args([format!("--top-k={TOP_K}"), format!("--threads={threads}")]);
            timed(command, &mut faiss, &mut faiss_process)?;
        }
        let (ours, faiss, products) = (join(ours), join(faiss), join(products));
        let operations = 2.0 * queries as f64 * candidates as f64 * self.dim as f64;
        Ok(Comparison {
            name,
            same: same(&predictions("ours"), &predictions("faiss"))?,
            rate: operations / median(&ours.seconds) / 1e9,
            product_rate: 2.0 * (SIDE as f64).powi(3) / median(&products.seconds) / 1e9,
            ours,
            ours_process,
            faiss,
            faiss_process,
        })
    }

    fn search(&self) -> anyhow::Result<Measured> {
        let queries = open(&self.query_file, Modality::Text)?;
        let candidates = open(&self.candidate_file, Modality::Image)?;
        let mut writer = PredictionWriter::create(
            &self.predictions,
            Direction::TextToImage,
            queries.ids(),
            candidates.ids(),
        )?;
        let start = Instant::now();
        for_each_top_k(
            &*queries,
            &*candidates,
            TOP_K,
            DEFAULT_BLOCK,
            &Device::default(),
            |_, ranked| Ok::<(), anyhow::Error>(writer.append(&ranked)?),
        )?;
        let seconds = vec![start.elapsed().as_secs_f64()];
        writer.finish()?;
        Ok(Measured { seconds, peak_mib: peak_memory_mib().unwrap_or(f64::NAN) })
    }
}

impl Comparison {
    fn print(&self) {
        let (ours, faiss) = (median(&self.ours.seconds), median(&self.faiss.seconds));
        let (process, other) = (median(&self.ours_process), median(&self.faiss_process));
        println!(
            "{:<12} {ours:>8.2} {faiss:>8.2} {:>6.2}x {process:>9.2} {other:>9.2} {:>8.2}x {:>8.0}% {:>10.0} {:>10.0} {:>8.0} {:>7.1}%",
            self.name,
            faiss / ours,
            other / process,
            self.rate / self.product_rate * 100.0,
            self.ours.peak_mib,
            self.faiss.peak_mib,
            self.rate,
            self.same * 100.0
        );
    }
}

fn print(measured: Measured) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Runs a program and keeps what it has measured and the seconds of the whole process.
fn timed(
    command: Command,
    measured: &mut Vec<Measured>,
    process: &mut Vec<f64>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    measured.push(measure(command)?);
    process.push(start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program and reads what it has measured.
fn measure(mut command: Command) -> anyhow::Result<Measured> {
    command.stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("reading what {command:?} says"))
}

/// All seconds, and the highest peak.
fn join(parts: Vec<Measured>) -> Measured {
    let peak_mib = parts.iter().map(|part| part.peak_mib).fold(0.0, f64::max);
    Measured { seconds: parts.into_iter().flat_map(|part| part.seconds).collect(), peak_mib }
}

/// Seconds of plain products, by the kernels of the CPU backend.
fn product() -> Measured {
    let device = Device::default();
    let matrix = || Tensor::<2>::random([SIDE, SIDE], Distribution::Normal(0.0, 1.0), &device);
    let (left, right) = (matrix(), matrix());
    let time = |_| {
        let start = Instant::now();
        left.clone().matmul(right.clone()).into_data();
        start.elapsed().as_secs_f64()
    };
    let seconds: Vec<f64> = (0..3).map(time).skip(1).collect();
    Measured { seconds, peak_mib: peak_memory_mib().unwrap_or(f64::NAN) }
}

/// Share of equal lines.
fn same(left: &Path, right: &Path) -> anyhow::Result<f64> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let (left, right) = (read(left)?, read(right)?);
    let count = left.lines().count();
    if count != right.lines().count() {
        bail!("the programs have answered different numbers of queries");
    }
    let equal = left.lines().zip(right.lines()).filter(|(a, b)| a == b).count();
    Ok(equal as f64 / count as f64)
}

/// Unit vectors in random directions.
fn rows(rows: usize, dim: usize) -> impl Iterator<Item = Vec<f32>> {
    const BLOCK: usize = 16_384;
    let device = Device::default();
    (0..rows).step_by(BLOCK).flat_map(move |start| {
        let count = BLOCK.min(rows - start);
        let values = Tensor::<2>::random([count, dim], Distribution::Normal(0.0, 1.0), &device);
        let values = cn_clip_model::normalize(values).into_data().try_into_vec::<f32>();
        let values = values.unwrap_or_default();
        values.chunks(dim).map(<[f32]>::to_vec).collect::<Vec<_>>()
    })
}

fn jsonl(path: &Path, key: &str, count: usize, dim: usize) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (id, row) in rows(count, dim).enumerate() {
        let row: Vec<f64> = row.into_iter().map(f64::from).collect();
        writeln!(file, "{{\"{key}\": {id}, \"feature\": {}}}", serde_json::to_string(&row)?)?;
    }
    Ok(file.flush()?)
}

/// The array, and its ids beside it.
fn npy(path: &Path, _: &str, count: usize, dim: usize) -> anyhow::Result<()> {
    let mut ids = BufWriter::new(File::create(path.with_extension("ids.txt"))?);
    for id in 0..count {
        writeln!(ids, "{id}")?;
    }
    ids.flush()?;
    let mut file = BufWriter::new(File::create(path)?);
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}");
    file.write_all(b"\x93NUMPY\x01\x00\x76\x00")?;
    writeln!(file, "{header:<117}")?;
    for row in rows(count, dim) {
        for value in row {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}
