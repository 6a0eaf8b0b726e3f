//! `cn-clip extract-features`, with the flags of `cn_clip/eval/extract_features.py`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_data::{DataError, atomic::check_not_input, image::ImageTransform};
use cn_clip_eval::{
    extract::{
        Encoded, ExtractError, Output, encode_pictures, encode_texts,
        input::{self, Input, STDIN},
    },
    features::{FeatureError, FeatureFormat, Modality, Settings},
};
use cn_clip_model::ClipConfig;

use super::{
    device::DeviceArg,
    encoder::{PrecisionArg, context_length},
    extraction_progress::Progress,
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
    /// Pictures: an LMDB directory (the imgs directory of a split), <split>_imgs.tsv, a folder of
    /// picture files, or - for paths on standard input
    #[arg(long, alias = "image_data", value_name = "PATH")]
    image_data: Option<PathBuf>,
    /// Texts: JSON lines with text_id and text, a .txt of plain lines (their numbers are the ids), or
    /// - for either on standard input
    #[arg(long, alias = "text_data", value_name = "PATH")]
    text_data: Option<PathBuf>,
    /// Picture features to write [default: --text-data with _texts.jsonl replaced by
    /// _imgs.img_feat.jsonl]
    #[arg(long, alias = "image_feat_output_path", value_name = "FILE")]
    image_feat_output_path: Option<PathBuf>,
    /// Text features to write [default: --text-data with .jsonl replaced by .txt_feat.jsonl]
    #[arg(long, alias = "text_feat_output_path", value_name = "FILE")]
    text_feat_output_path: Option<PathBuf>,
    /// jsonl (the Python program's), npy (ids beside it in X.ids.jsonl), safetensors or parquet
    /// [default: by the ending of the output, else jsonl]
    #[arg(long, value_name = "FORMAT")]
    format: Option<FeatureFormat>,
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
    /// Continue after the last whole feature of a run that did not finish
    #[arg(long, alias = "resume_extraction")]
    resume_extraction: bool,
    /// Leave out pictures that cannot be decoded, and list them in <output>.skipped.txt
    #[arg(long, alias = "skip_bad_images")]
    skip_bad_images: bool,
    #[command(flatten)]
    precision: PrecisionArg,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Extracts.
pub fn run(args: &ExtractFeaturesArgs) -> anyhow::Result<()> {
    if !args.extract_image_feats && !args.extract_text_feats {
        bail!("nothing to do: add --extract-image-feats, --extract-text-feats or both");
    }
    let config = args.towers.config()?;
    context_length(args.context_length, &config)?;
    let texts = args.extract_text_feats.then(|| text_task(args)).transpose()?;
    let images = args.extract_image_feats.then(|| image_task(args)).transpose()?;
    if let (Some(texts), Some(images)) = (&texts, &images) {
        if texts.from == images.from {
            bail!("--image-data and --text-data cannot both be {}", texts.from.display());
        }
        if texts.output == images.output {
            bail!("both features would be written to {}", texts.output.display());
        }
    }
    let device = args.device.open()?;
    let model = args.precision.apply(model::load(&config, &args.resume, &device)?)?;
    if let Some(task) = texts {
        let input = input::texts(&task.from).context("--text-data")?;
        let size = args.text_batch_size as usize;
        extract(args, &config, &task, input, size, |entries, sink| {
            encode_texts(&model, entries, args.context_length, size, sink)
        })?;
    }
    if let Some(task) = images {
        let input = input::pictures(&task.from).context("--image-data")?;
        let transform = ImageTransform::new(config.vision.image_resolution);
        let (size, skip) = (args.img_batch_size as usize, args.skip_bad_images);
        extract(args, &config, &task, input, size, |entries, sink| {
            encode_pictures(&model, entries, &transform, size, skip, sink)
        })?;
    }
    Ok(())
}

/// One side of an extraction.
struct Task {
    modality: Modality,
    from: PathBuf,
    output: PathBuf,
    format: FeatureFormat,
}

impl Task {
    /// `stem` names the output where `--…-feat-output-path` does not.
    fn new(
        args: &ExtractFeaturesArgs,
        modality: Modality,
        from: &Path,
        given: Option<&Path>,
        stem: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let (output, format) = match (given, args.format) {
            (Some(path), format) => {
                let named = FeatureFormat::of_name(path);
                if let (Some(named), Some(format)) = (named, format)
                    && named != format
                {
                    bail!("--format {format}, but {} ends in .{named}", path.display());
                }
                (path.to_owned(), format.or(named).unwrap_or_default())
            }
            (None, format) => {
                let format = format.unwrap_or_default();
                (PathBuf::from(format!("{}.{format}", stem()?)), format)
            }
        };
        check_not_input(&output, &[from, &args.resume])
            .with_context(|| format!("cannot write features to {}", output.display()))?;
        Ok(Self { modality, from: from.to_owned(), output, format })
    }

    fn what(&self) -> &'static str {
        match self.modality {
            Modality::Image => "pictures",
            Modality::Text => "texts",
        }
    }
}

fn text_task(args: &ExtractFeaturesArgs) -> anyhow::Result<Task> {
    let from = args.text_data.as_deref().context("--extract-text-feats needs --text-data")?;
    let given = args.text_feat_output_path.as_deref();
    Task::new(args, Modality::Text, from, given, || {
        if from == Path::new(STDIN) {
            bail!("--text-feat-output-path is needed for texts on standard input");
        }
        Ok(from.with_extension("txt_feat").display().to_string())
    })
}

fn image_task(args: &ExtractFeaturesArgs) -> anyhow::Result<Task> {
    let from = args.image_data.as_deref().context("--extract-image-feats needs --image-data")?;
    let given = args.image_feat_output_path.as_deref();
    Task::new(args, Modality::Image, from, given, || {
        let texts = args.text_data.as_deref().filter(|texts| *texts != Path::new(STDIN));
        if let Some(texts) = texts {
            let texts = texts.to_string_lossy();
            let stem = texts.strip_suffix("_texts.jsonl").unwrap_or(&texts);
            return Ok(format!("{stem}_imgs.img_feat"));
        }
        let path = from.to_string_lossy();
        let stem = path.strip_suffix(".tsv").map(|stem| format!("{stem}.img_feat"));
        stem.context("--image-feat-output-path is needed when there is no --text-data")
    })
}

/// Features of one side; `encode` turns entries into batches.
fn extract<T: Send + 'static>(
    args: &ExtractFeaturesArgs,
    config: &ClipConfig,
    task: &Task,
    input: Input<T>,
    batch_size: usize,
    encode: impl FnOnce(
        input::Entries<T>,
        &mut dyn FnMut(Encoded) -> Result<(), FeatureError>,
    ) -> Result<(), ExtractError<FeatureError>>,
) -> anyhow::Result<()> {
    let dim = config.vision.embed_dim;
    let settings = settings(args, task)?;
    let resume = args.resume_extraction;
    let (path, format) = (&task.output, task.format);
    let mut output = Output::open(path, format, task.modality, dim, &settings, resume)?;
    let mut progress = Progress::new(input.size, task.what());
    let held = output.rows();
    if held > 0 {
        note(&format!("{held} features are in {}.part: continuing after them", path.display()));
    }
    let entries = output.remaining(input.entries, batch_size, |cost| progress.pass_over(cost))?;
    let result = encode(entries, &mut |batch| {
        output.write(&batch)?;
        progress.add(batch.ids.len(), batch.cost);
        Ok(())
    });
    progress.finish();
    if let Err(error) = result {
        if output.is_kept() {
            let rows = output.rows();
            note(&format!("{rows} features are kept: --resume-extraction continues after them"));
        }
        let mut context = format!("extracting with {}", args.resume.display());
        if matches!(error, ExtractError::Data(DataError::Image { .. })) {
            context.push_str(" (--skip-bad-images leaves bad pictures out and lists them)");
        }
        return Err(anyhow::Error::new(error).context(context));
    }
    if output.rows() == 0 && output.skipped() == 0 {
        bail!("{}: holds no {}", task.from.display(), task.what());
    }
    if output.rows() == 0 {
        bail!("{}: none of its pictures can be decoded", task.from.display());
    }
    let summary = output.finish()?;
    let (rows, modality) = (summary.rows, task.modality);
    note(&format!("{rows} {modality} features are stored in {}", path.display()));
    if let Some(list) = summary.list {
        let count = summary.skipped;
        note(&format!(
            "{count} pictures could not be decoded: they are listed in {}",
            list.display()
        ));
    }
    Ok(())
}

/// What decides the features: a run is only continued with the same.
fn settings(args: &ExtractFeaturesArgs, task: &Task) -> anyhow::Result<Settings> {
    let weights =
        fs::canonicalize(&args.resume).with_context(|| args.resume.display().to_string())?;
    let found = fs::metadata(&weights).with_context(|| args.resume.display().to_string())?;
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |time| time.as_secs());
    let weights = format!("{} ({} bytes, of {modified})", weights.display(), found.len());
    let mut settings = vec![
        ("--resume", weights),
        ("--vision-model", args.towers.vision_model.clone()),
        ("--text-model", args.towers.text_model.clone()),
        ("--precision", args.precision.to_string()),
        ("input", task.from.display().to_string()),
    ];
    if task.modality == Modality::Text {
        settings.push(("--context-length", args.context_length.to_string()));
    }
    Ok(settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
