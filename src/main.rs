//! The cn-clip binary.

mod allocator;
mod cli;
mod message;

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
            let _ = writeln!(io::stderr(), "error: {}", message::message(&error));
            ExitCode::FAILURE
        }
    }
}
