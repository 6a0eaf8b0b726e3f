//! Developer tasks: `cargo xtask <verb>`.

#[path = "../../src/allocator.rs"]
mod allocator;
mod bench;
mod gpu_bench;
mod parity;
mod peers;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Developer tasks")]
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
        Verb::Parity(args) => parity::run(&args),
        Verb::GpuBench(args) => gpu_bench::run(&args),
    }
}
