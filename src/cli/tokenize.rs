//! `cn-clip tokenize`: texts to token ids.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter},
    path::PathBuf,
};

use anyhow::Context;
use clap::{Args, value_parser};
use cn_clip_data::tokenizer::{Tokenizer, jsonl::tokenize_lines};

/// Flags of `cn-clip tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Tokens per text, [CLS] and [SEP] included
    #[arg(long, alias = "context_length", default_value_t = 52,
          value_parser = value_parser!(u32).range(2..=65536))]
    context_length: u32,
    /// Lower-case and straighten quotes first, as training does
    #[arg(long)]
    dataset: bool,
    /// JSON lines with a `text` field; standard input if not given
    #[arg(long, value_name = "JSONL")]
    input: Option<PathBuf>,
}

/// Writes JSON lines with `text` and `ids`.
pub fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    let (length, dataset) = (args.context_length as usize, args.dataset);
    let tokenizer = Tokenizer::chinese();
    let mut writer = BufWriter::new(io::stdout().lock());
    let result = match &args.input {
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| name.clone())?;
            tokenize_lines(tokenizer, BufReader::new(file), &mut writer, &name, length, dataset)
        }
        None => {
            let reader = io::stdin().lock();
            tokenize_lines(tokenizer, reader, &mut writer, "standard input", length, dataset)
        }
    };
    Ok(result.context("standard output")??)
}
