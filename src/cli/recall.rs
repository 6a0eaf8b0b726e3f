//! `cn-clip recall`: from features to recall of both directions.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Context;
use clap::Args;
use cn_clip_data::atomic::{check_not_input, write_atomically};
use cn_clip_eval::{
    DEFAULT_BLOCK, annotation,
    features::{Modality, open},
    recall::{Bootstrap, Interval, Intervals, Ranks, RecallReport},
};
use serde::Serialize;

use super::{device::DeviceArg, print};

/// Flags of `cn-clip recall`.
#[derive(Debug, Args)]
pub struct RecallArgs {
    /// Picture features
    #[arg(long, alias = "image_feats", value_name = "FILE")]
    image_feats: PathBuf,
    /// Text features
    #[arg(long, alias = "text_feats", value_name = "FILE")]
    text_feats: PathBuf,
    /// Which texts belong to which pictures: JSON lines with text_id and image_ids
    #[arg(long, value_name = "JSONL")]
    texts: PathBuf,
    /// Add confidence intervals, of LEVEL percent, by the bootstrap over the queries
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, default_missing_value = "95",
          value_parser = level)]
    ci: Option<f64>,
    /// Samples of the bootstrap
    #[arg(long, value_name = "N", default_value = "1000", requires = "ci")]
    samples: NonZeroUsize,
    /// Seed of the bootstrap
    #[arg(long, value_name = "SEED", default_value_t = 123, requires = "ci")]
    seed: u64,
    /// Candidates held at a time; bounds the memory, not the result
    #[arg(long, alias = "eval_batch_size", value_name = "N", default_value_t = block())]
    eval_batch_size: NonZeroUsize,
    /// Figures to write, in JSON
    #[arg(long, value_name = "JSON")]
    output: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

fn block() -> NonZeroUsize {
    NonZeroUsize::new(DEFAULT_BLOCK).unwrap_or(NonZeroUsize::MIN)
}

fn level(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse() {
        Ok(level) if level > 0.0 && level < 100.0 => Ok(level),
        _ => Err("a level is a percentage above 0 and below 100".to_owned()),
    }
}

#[derive(Serialize)]
struct Report {
    text_to_image: DirectionReport,
    image_to_text: DirectionReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap: Option<Bootstrap>,
}

#[derive(Serialize)]
struct DirectionReport {
    #[serde(flatten)]
    figures: RecallReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    intervals: Option<Intervals>,
}

impl DirectionReport {
    fn new(ranks: &[usize], bootstrap: Option<Bootstrap>) -> Self {
        let intervals = bootstrap.map(|bootstrap| bootstrap.intervals(ranks));
        Self { figures: RecallReport::new(ranks), intervals }
    }

    fn line(&self, name: &str) -> String {
        let RecallReport { r1, r5, r10, mean_recall, median_rank, queries } = self.figures;
        let mut line = format!(
            "{name:<13} {r1:>13.2} {r5:>13.2} {r10:>13.2} {mean_recall:>13.2} {median_rank:>13.1} {queries:>8}\n"
        );
        if let Some(intervals) = &self.intervals {
            let ends = |[low, high]: Interval| format!("{low:.2}-{high:.2}");
            line.push_str(&format!(
                "{:<13} {:>13} {:>13} {:>13} {:>13} {:>13}\n",
                "",
                ends(intervals.r1),
                ends(intervals.r5),
                ends(intervals.r10),
                ends(intervals.mean_recall),
                ends(intervals.median_rank)
            ));
        }
        line
    }
}

/// Scores both directions and prints a table.
///
/// # Errors
/// Names the file and line, or the id, that is wrong.
pub fn run(args: &RecallArgs) -> anyhow::Result<()> {
    let failed = |output: &PathBuf| format!("cannot write figures to {}", output.display());
    if let Some(output) = &args.output {
        check_not_input(output, &[&args.image_feats, &args.text_feats, &args.texts])
            .with_context(|| failed(output))?;
    }
    let device = args.device.open()?;
    let positives = annotation::read(&args.texts)?;
    let images = open(&args.image_feats, Modality::Image)?;
    let texts = open(&args.text_feats, Modality::Text)?;
    let ranks = Ranks::new(&*images, &*texts, &positives, args.eval_batch_size.get(), &device)?;
    let bootstrap =
        args.ci.map(|level| Bootstrap { level, samples: args.samples.get(), seed: args.seed });
    let report = Report {
        text_to_image: DirectionReport::new(&ranks.text_to_image, bootstrap),
        image_to_text: DirectionReport::new(&ranks.image_to_text, bootstrap),
        bootstrap,
    };
    if let Some(output) = &args.output {
        write_atomically(output, &serde_json::to_vec_pretty(&report)?)
            .with_context(|| failed(output))?;
    }
    let head = format!(
        "{:<13} {:>13} {:>13} {:>13} {:>13} {:>13} {:>8}\n",
        "", "R@1", "R@5", "R@10", "mean recall", "median rank", "queries"
    );
    let lines =
        [("text to image", &report.text_to_image), ("image to text", &report.image_to_text)]
            .map(|(name, report)| report.line(name));
    print(&(head + &lines.concat()))
}
