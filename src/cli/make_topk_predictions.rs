//! `cn-clip make-topk-predictions` (texts search pictures) and `make-topk-predictions-tr` (pictures
//! search texts).

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cn_clip_data::atomic::check_not_input;
use cn_clip_eval::DEFAULT_BLOCK;
use cn_clip_eval::features::{Modality, open};
use cn_clip_eval::knn::for_each_top_k;
use cn_clip_eval::predictions::{Direction, PredictionWriter};

use crate::cli::device::DeviceArg;

/// Flags of both directions.
#[derive(Debug, Args)]
pub struct MakeTopkPredictionsArgs {
    /// Picture features, as extract-features writes them
    #[arg(long, alias = "image_feats", value_name = "FILE")]
    image_feats: PathBuf,
    /// Text features, as extract-features writes them
    #[arg(long, alias = "text_feats", value_name = "FILE")]
    text_feats: PathBuf,
    /// Number of predictions per query; fewer if there are fewer candidates
    #[arg(long, alias = "top_k", value_name = "K", default_value_t = ten())]
    top_k: NonZeroUsize,
    /// Candidates held at a time; bounds the memory, not the result
    #[arg(long, alias = "eval_batch_size", value_name = "N", default_value_t = block())]
    eval_batch_size: NonZeroUsize,
    /// Predictions to write: one JSON line per query, in the order of the queries
    #[arg(long, value_name = "JSONL")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

fn ten() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(9)
}

fn block() -> NonZeroUsize {
    NonZeroUsize::new(DEFAULT_BLOCK).unwrap_or(NonZeroUsize::MIN)
}

/// Ranks pictures for every text.
///
/// # Errors
/// Names the file and line, or the flag, that is wrong; the output is then as it was.
pub fn run(args: &MakeTopkPredictionsArgs) -> anyhow::Result<()> {
    predict(args, Direction::TextToImage)
}

/// Ranks texts for every picture.
///
/// # Errors
/// As [`run`].
pub fn run_tr(args: &MakeTopkPredictionsArgs) -> anyhow::Result<()> {
    predict(args, Direction::ImageToText)
}

fn predict(args: &MakeTopkPredictionsArgs, direction: Direction) -> anyhow::Result<()> {
    let failed = || format!("cannot write predictions to {}", args.output.display());
    check_not_input(&args.output, &[&args.image_feats, &args.text_feats]).with_context(failed)?;
    let device = args.device.open()?;
    let images = open(&args.image_feats, Modality::Image)?;
    let texts = open(&args.text_feats, Modality::Text)?;
    let (queries, candidates) = match direction {
        Direction::TextToImage => (&*texts, &*images),
        Direction::ImageToText => (&*images, &*texts),
    };
    let (k, block) = (args.top_k.get(), args.eval_batch_size.get());
    let (query_ids, ids) = (queries.ids(), candidates.ids());
    let mut writer =
        PredictionWriter::create(&args.output, direction, query_ids, ids).with_context(failed)?;
    for_each_top_k(queries, candidates, k, block, &device, |_, ranked| {
        writer.append(&ranked).with_context(failed)
    })?;
    writer.finish().with_context(failed)?;
    tracing::info!(
        "top-{k} predictions for {} {}s among {} {}s are in {}",
        queries.rows(),
        direction.query(),
        candidates.rows(),
        direction.candidate(),
        args.output.display()
    );
    Ok(())
}
