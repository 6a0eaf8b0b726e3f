//! `cn-clip extract-features`, with the flags of `cn_clip/eval/extract_features.py`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use cn_clip_data::{
    Id,
    format::{Lines, query_line},
    image::ImageTransform,
    lmdb::LmdbImages,
};
use cn_clip_eval::{
    extract::{image_features, text_features},
    features::{FeatureError, FeatureWriter, Modality},
};
use cn_clip_model::{Clip, ClipConfig};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    device::DeviceArg,
    model::{self, TowerArgs},
    note,
};

/// Flags of `cn-clip extract-features`.
#[derive(Debug, Args)]
pub struct ExtractFeaturesArgs {
    /// Write features of pictures
    #[arg(long, alias = "extract_image_feats")]
    extract_image_feats: bool,
    /// Write features of texts
    #[arg(long, alias = "extract_text_feats")]
    extract_text_feats: bool,
    /// LMDB directory of pictures (the imgs directory of a split)
    #[arg(long, alias = "image_data", value_name = "DIR")]
    image_data: Option<PathBuf>,
    /// JSON lines with text_id and text
    #[arg(long, alias = "text_data", value_name = "JSONL")]
    text_data: Option<PathBuf>,
    /// Picture features to write [default: --text-data with _texts.jsonl replaced by
    /// _imgs.img_feat.jsonl]
    #[arg(long, alias = "image_feat_output_path", value_name = "JSONL")]
    image_feat_output_path: Option<PathBuf>,
    /// Text features to write [default: --text-data with .jsonl replaced by .txt_feat.jsonl]
    #[arg(long, alias = "text_feat_output_path", value_name = "JSONL")]
    text_feat_output_path: Option<PathBuf>,
    /// Pictures of a batch
    #[arg(long, alias = "img_batch_size", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..))]
    img_batch_size: u32,
    /// Texts of a batch
    #[arg(long, alias = "text_batch_size", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..))]
    text_batch_size: u32,
    /// Tokens per text, [CLS] and [SEP] included
    #[arg(long, alias = "context_length", default_value_t = 52)]
    context_length: usize,
    /// Weights
    #[arg(long, value_name = "FILE")]
    resume: PathBuf,
    /// fp32; amp means the same here, as in the Python program
    #[arg(long, value_enum, default_value = "amp")]
    precision: Precision,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Arithmetic of the extraction.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Precision {
    Amp,
    Fp32,
}

/// Extracts.
pub fn run(args: &ExtractFeaturesArgs) -> anyhow::Result<()> {
    if !args.extract_image_feats && !args.extract_text_feats {
        bail!("nothing to do: add --extract-image-feats, --extract-text-feats or both");
    }
    let config = args.towers.config()?;
    if args.context_length < 2 || args.context_length > config.text.max_positions {
        let positions = config.text.max_positions;
        bail!(
            "--context-length must be between 2 and {positions}, the positions of the text tower"
        );
    }
    let text_data = || args.text_data.as_deref().context("--extract-text-feats needs --text-data");
    let image_data =
        || args.image_data.as_deref().context("--extract-image-feats needs --image-data");
    if args.extract_text_feats {
        text_data()?;
    }
    if args.extract_image_feats {
        image_data()?;
    }
    let device = args.device.open()?;
    let model = model::load(&config, &args.resume, &device)?;
    if args.extract_text_feats {
        texts(args, &model, text_data()?)?;
    }
    if args.extract_image_feats {
        images(args, &config, &model, image_data()?)?;
    }
    Ok(())
}

fn texts(args: &ExtractFeaturesArgs, model: &Clip, path: &Path) -> anyhow::Result<()> {
    let output = match &args.text_feat_output_path {
        Some(path) => path.clone(),
        None => path.with_extension("txt_feat.jsonl"),
    };
    let mut lines = Lines::open(path)?;
    let (mut ids, mut texts): (Vec<Id>, Vec<String>) = Default::default();
    let mut line = String::new();
    while lines.next_into(&mut line)? {
        let (id, text) = query_line(&line).map_err(|reason| lines.error(reason))?;
        ids.push(id);
        texts.push(text);
    }
    if ids.is_empty() {
        bail!("{}: holds no texts", path.display());
    }
    let mut writer = FeatureWriter::create(&output, Modality::Text)?;
    let bar = progress(ids.len(), "texts");
    let size = args.text_batch_size as usize;
    text_features(model, &texts, args.context_length, size, |first, features| {
        let count = size.min(ids.len() - first);
        let width = features.len() / count;
        for (id, feature) in ids[first..first + count].iter().zip(features.chunks(width)) {
            writer.write(id, feature)?;
        }
        bar.inc(count as u64);
        Ok::<(), FeatureError>(())
    })
    .with_context(|| weights(args))?;
    bar.finish_and_clear();
    let count = writer.finish()?;
    note(&format!("{count} text features are stored in {}", output.display()));
    Ok(())
}

fn images(
    args: &ExtractFeaturesArgs,
    config: &ClipConfig,
    model: &Clip,
    path: &Path,
) -> anyhow::Result<()> {
    let output = match (&args.image_feat_output_path, &args.text_data) {
        (Some(path), _) => path.clone(),
        (None, Some(texts)) => {
            let texts = texts.to_string_lossy();
            let stem = texts.strip_suffix("_texts.jsonl").unwrap_or(&texts);
            PathBuf::from(format!("{stem}_imgs.img_feat.jsonl"))
        }
        (None, None) => bail!("--image-feat-output-path is needed when there is no --text-data"),
    };
    let data = LmdbImages::open(path).context("--image-data")?;
    let ids = data.ids()?;
    let transform = ImageTransform::new(config.vision.image_resolution);
    let mut writer = FeatureWriter::create(&output, Modality::Image)?;
    let bar = progress(ids.len(), "pictures");
    let size = args.img_batch_size as usize;
    image_features(
        model,
        &ids,
        |id| data.image(id),
        &transform,
        size,
        |ids, features| {
            let width = features.len() / ids.len();
            for (id, feature) in ids.iter().zip(features.chunks(width)) {
                writer.write(id, feature)?;
            }
            bar.inc(ids.len() as u64);
            Ok::<(), FeatureError>(())
        },
    )
    .with_context(|| weights(args))?;
    bar.finish_and_clear();
    let count = writer.finish()?;
    note(&format!("{count} image features are stored in {}", output.display()));
    Ok(())
}

fn weights(args: &ExtractFeaturesArgs) -> String {
    format!("extracting with {}", args.resume.display())
}

fn progress(total: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_message(what);
    let style = "{bar:30} {pos}/{len} {msg} | {per_sec} | {eta} left";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
