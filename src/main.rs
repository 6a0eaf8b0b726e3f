//! The cn-clip binary.

mod allocator;
mod cli;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

fn main() -> ExitCode {
    allocator::keep_memory();
    let args = cli::Cli::parse();
    cli::start_logging(args.debug);
    match cli::run(&args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be on the disk that is full.
            let _ = writeln!(io::stderr(), "error: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that it tells already.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}
