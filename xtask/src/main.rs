//! Developer tasks: `cargo xtask <verb>`.

#[path = "../../src/allocator.rs"]
mod allocator;
mod bench;
mod bench_convert;
mod bench_search;
mod convert;
mod curves;
mod features;
mod flops;
mod gpu_bench;
mod load_test;
mod machine;
mod memory;
#[path = "../../src/message.rs"]
mod message;
mod parity;
mod peers;
mod plot;
mod registers;
mod release;
mod sampling;
mod size;
mod training;

use std::{env, ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Developer tasks", args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Time and memory of encoding and of a training step; build it with --release. With --peers:
    /// see bench-peers
    Bench(bench::BenchArgs),
    /// Beside PyTorch and onnxruntime; the same as bench --peers
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
    /// Time and memory against batch and size of data, with plots for docs/performance.md
    Curves(curves::CurvesArgs),
    /// Size of the program, time to its help, and where the time of encoding goes
    Size(size::SizeArgs),
    /// A contender of bench-peers
    #[command(hide = true)]
    PeersWorker(peers::WorkerArgs),
}

fn main() -> ExitCode {
    allocator::keep_memory();
    match run(Cli::parse_from(with_verb(env::args_os().collect())).verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message::message(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::BenchPeers(args) => peers::run(&args),
        Verb::BenchSearch(args) => bench_search::run(&args),
        Verb::BenchConvert(args) => bench_convert::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Features(args) => features::run(&args),
        Verb::LoadTest(args) => load_test::run(&args),
        Verb::Parity(args) => parity::run(&args),
        Verb::GpuBench(args) => gpu_bench::run(&args),
        Verb::Curves(args) => curves::run(&args),
        Verb::Size(args) => size::run(&args),
        Verb::PeersWorker(args) => peers::worker(&args),
    }
}

/// `bench --peers`, whose flags are others, as the verb `bench-peers`.
fn with_verb(mut args: Vec<OsString>) -> Vec<OsString> {
    let flag = args.iter().position(|arg| arg == "--peers");
    if let (Some(verb), Some(flag)) = (args.iter().position(|arg| arg == "bench"), flag)
        && verb == 1
    {
        args[verb] = "bench-peers".into();
        args.remove(flag);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_peers_in_both_spellings() {
        let parse = |args: &str| {
            let args = args.split(' ').map(OsString::from).collect();
            Cli::try_parse_from(with_verb(args)).map(|cli| cli.verb)
        };
        for args in ["xtask bench --peers --quick", "xtask bench --quick --peers"] {
            assert!(matches!(parse(args), Ok(Verb::BenchPeers(_))), "{args}");
        }
        assert!(matches!(parse("xtask bench-peers --case load"), Ok(Verb::BenchPeers(_))));
        assert!(matches!(parse("xtask bench --batch 2"), Ok(Verb::Bench(_))));
        assert!(parse("xtask bench --quick").is_err());
    }
}
