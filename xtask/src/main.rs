//! Developer tasks: `cargo xtask <verb>`.

#[path = "../../src/allocator.rs"]
mod allocator;
mod bench;
mod curves;
mod machine;
mod memory;
mod peers;
mod plot;
mod release;
mod sampling;
mod size;
mod training;

use std::{env, ffi::OsString};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Developer tasks")]
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
    /// Time and memory against batch and size of data, with plots for docs/performance.md
    Curves(curves::CurvesArgs),
    /// Size of the program, time to its help, and where the time of encoding goes
    Size(size::SizeArgs),
    /// A contender of bench-peers
    #[command(hide = true)]
    PeersWorker(peers::WorkerArgs),
}

fn main() -> anyhow::Result<()> {
    allocator::keep_memory();
    match Cli::parse_from(with_verb(env::args_os().collect())).verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::BenchPeers(args) => peers::run(&args),
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
