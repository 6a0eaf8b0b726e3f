//! Developer tasks: `cargo xtask <verb>`.

#[path = "../../src/allocator.rs"]
mod allocator;
mod bench;
mod bench_convert;
mod bench_search;
mod convert;
mod features;
mod gpu_bench;
mod load_test;
mod parity;
mod peers;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Developer tasks", args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Time and memory of encoding and of a training step; build it with --release
    Bench(bench::BenchArgs),
    /// The training step beside PyTorch's; build it with --release
    BenchPeers(peers::PeersArgs),
    /// Exact search beside FAISS; build it with --release
    BenchSearch(bench_search::SearchArgs),
    /// Time and memory of converting and loading checkpoints; build it with --release
    BenchConvert(bench_convert::BenchConvertArgs),
    /// Turn a checkpoint of any form into another
    Convert(convert::ConvertArgs),
    /// Features of recorded inputs, for comparison with another program
    Features(features::FeaturesArgs),
    /// Many clients on a server of this machine, with and without batching; build it with --release
    LoadTest(load_test::LoadTestArgs),
    /// What a device computes beside recordings, with tolerances
    Parity(parity::ParityArgs),
    /// A folder that measures rates beside PyTorch's on a CUDA machine, and the results as a table
    GpuBench(gpu_bench::GpuBenchArgs),
}

fn main() -> anyhow::Result<()> {
    allocator::keep_memory();
    match Cli::parse().verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::BenchPeers(args) => peers::run(&args),
        Verb::BenchSearch(args) => bench_search::run(&args),
        Verb::BenchConvert(args) => bench_convert::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Features(args) => features::run(&args),
        Verb::LoadTest(args) => load_test::run(&args),
        Verb::Parity(args) => parity::run(&args),
        Verb::GpuBench(args) => gpu_bench::run(&args),
    }
}
