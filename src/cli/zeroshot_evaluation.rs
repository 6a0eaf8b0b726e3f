//! `cn-clip zeroshot-evaluation`, with the flags of `cn_clip/eval/zeroshot_evaluation.py`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use burn::tensor::{Tensor, TensorData};
use clap::Args;
use cn_clip_data::{DataError, Id, image::ImageTransform};
use cn_clip_eval::{
    extract::image_features,
    python_json::python_float,
    templates::TemplateSet,
    zeroshot::{
        Accuracy, Classifier, Confusion, ElevaterReport, ImageFolder, Metrics, PromptCache,
        PromptEncoder, ZeroShotError, read_index, read_labels, reorder,
    },
};
use cn_clip_model::{Clip, ClipConfig, checkpoint::parameter_count};

use super::{
    device::DeviceArg,
    encoder::{PrecisionArg, context_length, progress},
    model::{self, TowerArgs},
    note, print,
};

/// Prompts encoded at once.
const PROMPT_BATCH: usize = 256;

/// Flags of `cn-clip zeroshot-evaluation`.
#[derive(Debug, Args)]
pub struct ZeroshotEvaluationArgs {
    /// Folder with one folder of pictures per class
    #[arg(long, value_name = "DIR")]
    datapath: PathBuf,
    /// Names of the classes, one per line, in the order of the sorted folders [default: the names of
    /// the folders]
    #[arg(long, visible_alias = "labels", alias = "label_file", value_name = "FILE")]
    label_file: Option<PathBuf>,
    /// Name of the data set: chooses the templates and names the report
    #[arg(long, value_name = "NAME", default_value = "imagenet")]
    dataset: String,
    /// Templates to use instead: the name of a set (openai, food, …) or a file with one on each
    /// line, `{}` in the place of the label
    #[arg(long, value_name = "NAME|FILE")]
    templates: Option<String>,
    /// JSON list that says which picture stands at each place of the report
    #[arg(long, value_name = "JSON")]
    index: Option<PathBuf>,
    /// Folder for the report (`<dataset>.json`), all figures (`<dataset>.metrics.json`) and the
    /// confusion matrix (`<dataset>.confusion.svg`)
    #[arg(long, alias = "save_dir", value_name = "DIR")]
    save_dir: PathBuf,
    /// Folder that keeps the class vectors for the next run [default: prompt-cache in --save-dir]
    #[arg(long, alias = "prompt_cache", value_name = "DIR")]
    prompt_cache: Option<PathBuf>,
    /// Pictures of a batch
    #[arg(long, alias = "img_batch_size", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..))]
    img_batch_size: u32,
    /// Tokens per prompt, [CLS] and [SEP] included
    #[arg(long, alias = "context_length", default_value_t = 52)]
    context_length: usize,
    /// Accepted for compatibility: pictures are decoded on every core
    #[arg(long, alias = "num_workers", default_value_t = 4, hide = true)]
    num_workers: usize,
    /// Weights
    #[arg(long, value_name = "FILE")]
    resume: PathBuf,
    #[command(flatten)]
    precision: PrecisionArg,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Classifies, writes the reports and prints the accuracy.
///
/// # Errors
/// Names the file, line or flag that is wrong.
pub fn run(args: &ZeroshotEvaluationArgs) -> anyhow::Result<()> {
    let config = args.towers.config()?;
    context_length(args.context_length, &config)?;
    let templates = args.templates()?;
    let folder = ImageFolder::open(&args.datapath)?;
    let labels = match &args.label_file {
        Some(path) => read_labels(path, folder.classes.len())?,
        None => folder.classes.clone(),
    };
    let images = folder.images.len();
    let index = args.index.as_ref().map(|path| read_index(path, images)).transpose()?;
    if Path::new(&args.dataset).file_name() != Some(args.dataset.as_ref()) {
        bail!("--dataset {:?} cannot be the name of a file", args.dataset);
    }
    fs::create_dir_all(&args.save_dir)
        .with_context(|| format!("creating {}", args.save_dir.display()))?;
    let device = args.device.open()?;
    let model = args.precision.apply(model::load(&config, &args.resume, &device)?)?;
    let (all, visual) = (parameter_count(&model, ""), parameter_count(&model, "visual"));

    let classifier = args.classifier(&config, &model, &templates, &labels)?;
    let probabilities = args.classify(&config, &model, &folder, &classifier)?;
    let (classes, targets) = (labels.len(), folder.targets());
    let accuracy = Accuracy::new(&probabilities, classes, &targets)?;
    let confusion = Confusion::new(&probabilities, classes, &targets);

    let ordered = match &index {
        Some(index) => &reorder(&probabilities, classes, index),
        None => &probabilities,
    };
    ElevaterReport {
        vision_model: args.vision_model(),
        dataset: &args.dataset,
        num_params: all,
        num_visual_params: visual,
        classes,
        probabilities: ordered,
    }
    .write(&args.save_dir)?;
    let beside = |ending: &str| args.save_dir.join(format!("{}.{ending}", args.dataset));
    Metrics::new(&args.dataset, templates.name(), &labels, &accuracy, &confusion)
        .write(&beside("metrics.json"))?;
    let picture = beside("confusion.svg");
    cn_clip_data::atomic::write_atomically(&picture, confusion.svg(&labels).as_bytes())
        .with_context(|| format!("writing {}", picture.display()))?;
    note(&format!("reports of {images} pictures are in {}", args.save_dir.display()));
    print(&format!(
        "Result:\nzeroshot-top1: {}\nzeroshot-top5: {}\nmean-per-class: {}\nFinished.\n",
        python_float(accuracy.top1),
        python_float(accuracy.top5),
        python_float(accuracy.mean_per_class())
    ))
}

impl ZeroshotEvaluationArgs {
    fn templates(&self) -> anyhow::Result<TemplateSet> {
        let Some(name) = &self.templates else {
            return Ok(TemplateSet::for_dataset(&self.dataset));
        };
        if let Some(set) = TemplateSet::named(name) {
            return Ok(set);
        }
        TemplateSet::read(Path::new(name)).with_context(|| {
            let names: Vec<_> = TemplateSet::names().collect();
            format!("--templates is one of {}, or a file", names.join(", "))
        })
    }

    /// Name of the image tower: that of its file, if it was given as one.
    fn vision_model(&self) -> &str {
        let name = &self.towers.vision_model;
        let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
        if name.ends_with(".json") { stem.unwrap_or(name) } else { name }
    }

    fn classifier(
        &self,
        config: &ClipConfig,
        model: &Clip,
        templates: &TemplateSet,
        labels: &[String],
    ) -> anyhow::Result<Classifier> {
        let encoder = PromptEncoder {
            model,
            templates,
            context_length: self.context_length,
            batch_size: PROMPT_BATCH,
        };
        let beside = self.save_dir.join("prompt-cache");
        let folder = self.prompt_cache.as_deref().unwrap_or(&beside);
        let precision = self.precision.to_string();
        let mut cache =
            PromptCache::open(folder, &self.resume, &encoder, &config.text, &precision)?;
        let bar = progress(0, "prompts");
        let classifier = encoder
            .classifier(labels, &mut cache, |done, all| {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            })
            .with_context(|| format!("encoding prompts with {}", self.resume.display()))?;
        bar.finish_and_clear();
        cache.save()?;
        Ok(classifier)
    }

    /// Probabilities `[pictures, classes]`.
    fn classify(
        &self,
        config: &ClipConfig,
        model: &Clip,
        folder: &ImageFolder,
        classifier: &Classifier,
    ) -> anyhow::Result<Vec<f32>> {
        let device = model.device();
        let transform = ImageTransform::new(config.vision.image_resolution);
        let ids: Vec<Id> =
            folder.images.iter().map(|(path, _)| Id::Text(path.display().to_string())).collect();
        let paths: std::collections::HashMap<&Id, &Path> =
            ids.iter().zip(folder.images.iter().map(|(path, _)| path.as_path())).collect();
        let read = |id: &Id| {
            let path = paths.get(id).copied().unwrap_or(Path::new(""));
            fs::read(path).map_err(DataError::io(path))
        };
        let mut probabilities = Vec::with_capacity(ids.len() * classifier.classes());
        let bar = progress(ids.len(), "pictures");
        let size = self.img_batch_size as usize;
        image_features(model, &ids, read, &transform, size, |ids, features| {
            let data = TensorData::new(features.to_vec(), [ids.len(), features.len() / ids.len()]);
            let features = Tensor::<2>::from_data(data, &device);
            let found = classifier.probabilities(features).map_err(|error| match error {
                ZeroShotError::NotFinite { .. } => ZeroShotError::NotFinite {
                    what: format!("a prediction of the pictures from {}", ids[0]),
                },
                other => other,
            })?;
            probabilities.extend(found);
            bar.inc(ids.len() as u64);
            Ok::<(), ZeroShotError>(())
        })
        .with_context(|| format!("classifying with {}", self.resume.display()))?;
        bar.finish_and_clear();
        Ok(probabilities)
    }
}
