//! `cn-clip shard`: one form of a data set into another.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use cn_clip_data::forms::{self, ShardOptions, TargetForm, write_shards};
use indicatif::{ProgressBar, ProgressStyle};

use super::print;

/// Flags of `cn-clip shard`.
#[derive(Debug, Args)]
pub struct ShardArgs {
    /// Pairs in any form that `train --train-data` takes
    #[arg(long, value_name = "DATA")]
    input: String,
    /// Directory for the new files, made if it is absent
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Form of the new files
    #[arg(long, value_enum, default_value = "tar")]
    to: Form,
    /// Beginning of the names of tar and parquet files; the split's name for texts and lmdb
    #[arg(long)]
    prefix: Option<String>,
    /// Most samples of a tar or parquet file
    #[arg(long, value_name = "N", default_value_t = ShardOptions::default().samples)]
    samples: usize,
    /// Most bytes of pictures of a tar or parquet file
    #[arg(long, value_name = "BYTES", default_value_t = ShardOptions::default().bytes)]
    bytes: u64,
    /// Compress parquet files; pictures hardly become smaller
    #[arg(long)]
    compress: bool,
}

/// Form of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// webdataset shards
    Tar,
    /// Parquet files with picture bytes
    Parquet,
    /// <split>_imgs.tsv and <split>_texts.jsonl
    Texts,
    /// The LMDB of a split
    Lmdb,
}

/// Cuts a data set.
pub fn run(args: &ShardArgs) -> anyhow::Result<()> {
    let source = forms::open(&args.input).context("--input")?;
    let bar = ProgressBar::new(source.len() as u64);
    let style = "{bar:30} {pos}/{len} pairs | {per_sec} | {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let (form, split) = match args.to {
        Form::Tar => (TargetForm::Tar, false),
        Form::Parquet => (TargetForm::Parquet, false),
        Form::Texts => (TargetForm::TextFiles, true),
        Form::Lmdb => (TargetForm::Lmdb, true),
    };
    let prefix = args.prefix.clone().unwrap_or(if split { "train" } else { "shard" }.to_string());
    let options =
        ShardOptions { prefix, samples: args.samples, bytes: args.bytes, compress: args.compress };
    let summary =
        write_shards(&source, form, &args.output, &options, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let summary = summary?;
    let (pairs, files, to) = (summary.samples, summary.paths.len(), args.output.display());
    print(&format!("{pairs} pairs written to {to}: {files} new files or directories\n"))
}
