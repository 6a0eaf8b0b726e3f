//! `cn-clip evaluation` (texts search pictures) and `evaluation-tr` (pictures search texts).

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cn_clip_eval::evaluation::evaluate_to_file;
use cn_clip_eval::predictions::Direction;

use super::print;

/// Files of both directions.
#[derive(Debug, Args)]
pub struct EvaluationArgs {
    /// Annotations: JSON lines with `text_id` and `image_ids` (-tr: `image_id` and `text_ids`)
    reference: PathBuf,
    /// Predictions: ten for each annotated query
    predictions: PathBuf,
    /// Report to write, in JSON; also written, with the reason, when predictions are refused
    output: PathBuf,
}

/// Scores text-to-image predictions; prints recall in percent.
///
/// # Errors
/// Says why the predictions cannot be scored, as the report does.
pub fn run(args: &EvaluationArgs) -> anyhow::Result<()> {
    evaluate(args, Direction::TextToImage)
}

/// Scores image-to-text predictions; prints recall in percent.
///
/// # Errors
/// As [`run`].
pub fn run_tr(args: &EvaluationArgs) -> anyhow::Result<()> {
    evaluate(args, Direction::ImageToText)
}

fn evaluate(args: &EvaluationArgs, direction: Direction) -> anyhow::Result<()> {
    let EvaluationArgs { reference, predictions, output } = args;
    let scores = evaluate_to_file(direction, reference, predictions, output)
        .with_context(|| format!("scoring {}", predictions.display()))?;
    print(&format!(
        "R@1 {:.2}  R@5 {:.2}  R@10 {:.2}  mean recall {:.2}\n",
        scores.r1, scores.r5, scores.r10, scores.mean_recall
    ))
}
