//! Commands of the binary: each parses its flags and calls a library.

mod build_lmdb_dataset;
mod check;
mod demo;
mod device;
mod devices;
mod encoder;
mod evaluation;
mod extract_features;
mod extraction_progress;
mod interrupt;
mod linear_probe;
mod make_topk_predictions;
mod model;
mod preprocess;
mod recall;
#[cfg(feature = "serve")]
mod serve;
mod shard;
mod similarity;
mod tokenize;
mod train;
mod transform_ir_annotation;
mod zeroshot_evaluation;

use std::io::{self, Write};

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

/// Chinese-CLIP: train, extract, retrieve and classify on any device.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    /// Show debug messages
    #[arg(long, global = true)]
    pub debug: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build LMDB data sets from `<split>_imgs.tsv` and `<split>_texts.jsonl`
    #[command(alias = "build_lmdb_dataset")]
    BuildLmdbDataset(build_lmdb_dataset::BuildLmdbDatasetArgs),
    /// Turn a data set into another form: tar shards, parquet, texts or LMDB
    Shard(shard::ShardArgs),
    /// Look at data, weights and settings before training
    Check(Box<check::CheckArgs>),
    /// Train or fine-tune a model
    Train(Box<train::TrainArgs>),
    /// Write features of pictures and texts
    #[command(alias = "extract_features")]
    ExtractFeatures(extract_features::ExtractFeaturesArgs),
    /// For each text, find the best pictures
    #[command(alias = "make_topk_predictions")]
    MakeTopkPredictions(make_topk_predictions::MakeTopkPredictionsArgs),
    /// For each picture, find the best texts
    #[command(alias = "make_topk_predictions_tr")]
    MakeTopkPredictionsTr(make_topk_predictions::MakeTopkPredictionsArgs),
    /// Turn text-to-picture annotations into picture-to-text ones
    #[command(alias = "transform_ir_annotation_to_tr")]
    TransformIrAnnotationToTr(transform_ir_annotation::TransformIrAnnotationArgs),
    /// Score text-to-picture predictions
    Evaluation(evaluation::EvaluationArgs),
    /// Score picture-to-text predictions
    #[command(alias = "evaluation_tr")]
    EvaluationTr(evaluation::EvaluationArgs),
    /// Score features in both directions at once
    Recall(recall::RecallArgs),
    /// Classify pictures by the names of their classes
    #[command(alias = "zeroshot_evaluation")]
    ZeroshotEvaluation(zeroshot_evaluation::ZeroshotEvaluationArgs),
    /// Classify by a linear layer on frozen features
    #[command(alias = "linear_probe")]
    LinearProbe(linear_probe::LinearProbeArgs),
    /// Print how well texts fit pictures
    Similarity(similarity::SimilarityArgs),
    /// Serve search, zero-shot classification and a page for both
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArgs>),
    /// Turn texts into token ids
    Tokenize(tokenize::TokenizeArgs),
    /// Turn a picture into the pixels the image tower sees
    Preprocess(preprocess::PreprocessArgs),
    /// List the devices of this build and machine, each with a short self-test
    Devices(devices::DevicesArgs),
    /// Train a small model on pictures of emoji, search and score it
    Demo(demo::DemoArgs),
}

/// Runs a command.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::BuildLmdbDataset(args) => build_lmdb_dataset::run(args),
        Command::Shard(args) => shard::run(args),
        Command::Check(args) => check::run(args),
        Command::Train(args) => train::run(args),
        Command::ExtractFeatures(args) => extract_features::run(args),
        Command::MakeTopkPredictions(args) => make_topk_predictions::run(args),
        Command::MakeTopkPredictionsTr(args) => make_topk_predictions::run_tr(args),
        Command::TransformIrAnnotationToTr(args) => transform_ir_annotation::run(args),
        Command::Evaluation(args) => evaluation::run(args),
        Command::EvaluationTr(args) => evaluation::run_tr(args),
        Command::Recall(args) => recall::run(args),
        Command::ZeroshotEvaluation(args) => zeroshot_evaluation::run(args),
        Command::LinearProbe(args) => linear_probe::run(args),
        Command::Similarity(args) => similarity::run(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Preprocess(args) => preprocess::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Demo(args) => demo::run(args),
    }
}

/// Sends messages of the libraries to standard error.
pub fn start_logging(debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::WARN };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        // It would panic where standard error cannot be written.
        .log_internal_errors(false)
        .init();
}

/// Prints a result. `println!` would panic where standard output is a full disk or a closed pipe.
fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("standard output")
}

/// Tells of progress on standard error, as far as that can be written.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether a command ended because nobody reads its output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_may_be_spelled_like_the_scripts_of_the_python_program() {
        for command in Cli::command().get_subcommands() {
            let snake = command.get_name().replace('-', "_");
            assert!(
                snake == command.get_name() || command.get_all_aliases().any(|name| name == snake),
                "{snake}"
            );
        }
    }
}
