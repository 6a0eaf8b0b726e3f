//! `cn-clip linear-probe`: accuracy of a linear classifier on frozen features.

use std::{
    collections::HashMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_data::{
    DataError, Id,
    atomic::{check_not_input, write_atomically},
    image::ImageTransform,
};
use cn_clip_eval::{
    extract::image_features,
    features::{Features, Modality, open},
    linear_probe::{FewShot, LabelledFeatures, Probe, Splits, Sweep, few_shot, probe, read_labels},
    zeroshot::ImageFolder,
};
use cn_clip_model::{Clip, ClipConfig};
use serde::Serialize;

use super::{
    device::DeviceArg,
    encoder::{PrecisionArg, progress},
    model::{self, TowerArgs},
    note, print,
};

/// Flags of `cn-clip linear-probe`.
#[derive(Debug, Args)]
pub struct LinearProbeArgs {
    /// Training split: a folder with one folder of pictures per class, or a file of their features
    #[arg(long, value_name = "DIR|FILE")]
    train_data: PathBuf,
    /// Split to choose the L2 strength on [default: a fifth of the training split, held out and then
    /// trained on as well]
    #[arg(long, value_name = "DIR|FILE")]
    val_data: Option<PathBuf>,
    /// Split to score
    #[arg(long, value_name = "DIR|FILE")]
    test_data: PathBuf,
    /// Classes of a file of features: an id, a tab and a class name on each line
    #[arg(long, value_name = "TSV")]
    train_labels: Option<PathBuf>,
    /// The same for --val-data
    #[arg(long, value_name = "TSV", requires = "val_data")]
    val_labels: Option<PathBuf>,
    /// The same for --test-data
    #[arg(long, value_name = "TSV")]
    test_labels: Option<PathBuf>,
    /// Train on so many pictures of each class, too: 1,2,4,8,16
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    shots: Vec<NonZeroUsize>,
    /// Draws of pictures for each number of shots
    #[arg(long, value_name = "N", default_value = "3")]
    trials: NonZeroUsize,
    /// Seed of the draws
    #[arg(long, value_name = "SEED", default_value_t = Sweep::default().seed)]
    seed: u64,
    /// Steps of L-BFGS at most
    #[arg(long, value_name = "N", default_value_t = Sweep::default().iterations)]
    max_iterations: usize,
    /// Figures to write, in JSON
    #[arg(long, value_name = "JSON")]
    output: Option<PathBuf>,
    /// Weights, to extract features of folders
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Pictures of a batch
    #[arg(long, alias = "img_batch_size", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..))]
    img_batch_size: u32,
    #[command(flatten)]
    precision: PrecisionArg,
    #[command(flatten)]
    towers: TowerArgs,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Serialize)]
struct Report<'a> {
    classes: &'a [String],
    seed: u64,
    few_shot: Vec<FewShot>,
    all: Probe,
}

/// Trains the probes and prints their accuracy.
///
/// # Errors
/// Names the file, line, class or flag that is wrong.
pub fn run(args: &LinearProbeArgs) -> anyhow::Result<()> {
    let failed = |output: &Path| format!("cannot write figures to {}", output.display());
    if let Some(output) = &args.output {
        let inputs =
            [&args.train_labels, &args.val_labels, &args.test_labels].into_iter().flatten();
        let data = [Some(&args.train_data), args.val_data.as_ref(), Some(&args.test_data)];
        let inputs: Vec<&Path> =
            inputs.chain(data.into_iter().flatten()).map(PathBuf::as_path).collect();
        check_not_input(output, &inputs).with_context(|| failed(output))?;
    }
    let splits = args.splits()?;
    let sweep = Sweep { iterations: args.max_iterations, seed: args.seed, ..Sweep::default() };
    let mut lines = format!(
        "{:>6} {:>16} {:>15} {:>10} {:>11}\n",
        "shots", "top-1", "mean per class", "L2", "validation"
    );
    let mut few = Vec::new();
    for shots in &args.shots {
        let found = few_shot(&splits, shots.get(), args.trials.get(), &sweep)?;
        let top1 = format!("{:.2} ± {:.2}", found.top1 * 100.0, found.deviation * 100.0);
        lines.push_str(&format!("{shots:>6} {top1:>16} {:>15.2}\n", found.mean_per_class * 100.0));
        few.push(found);
    }
    let all = probe(&splits, &sweep)?;
    let [top1, mean, validation] =
        [all.top1, all.mean_per_class, all.validation_top1].map(|share| share * 100.0);
    let strength = format!("{:.2e}", all.l2);
    lines.push_str(&format!(
        "{:>6} {top1:>16.2} {mean:>15.2} {strength:>10} {validation:>11.2}\n",
        "all"
    ));
    if !all.converged {
        note("the last training has not converged; a larger --max-iterations may help");
    }
    if let Some(output) = &args.output {
        let report = Report { classes: &splits.classes, seed: args.seed, few_shot: few, all };
        write_atomically(output, &serde_json::to_vec_pretty(&report)?)
            .with_context(|| failed(output))?;
    }
    print(&lines)
}

impl LinearProbeArgs {
    fn splits(&self) -> anyhow::Result<Splits> {
        let mut encoder = Encoder { args: self, loaded: None };
        let train =
            encoder.split(&self.train_data, self.train_labels.as_deref(), "--train-labels")?;
        let validation = match &self.val_data {
            Some(data) => Some(encoder.split(data, self.val_labels.as_deref(), "--val-labels")?),
            None => None,
        };
        let test = encoder.split(&self.test_data, self.test_labels.as_deref(), "--test-labels")?;
        Ok(Splits::new(train, validation, test)?)
    }
}

/// Reads splits; loads the model when the first folder needs it.
struct Encoder<'a> {
    args: &'a LinearProbeArgs,
    loaded: Option<(ClipConfig, Clip)>,
}

impl Encoder<'_> {
    fn split(
        &mut self,
        data: &Path,
        labels: Option<&Path>,
        flag: &str,
    ) -> anyhow::Result<LabelledFeatures> {
        if data.is_dir() {
            if labels.is_some() {
                bail!(
                    "{flag} goes with a file of features; {} is a folder, whose classes are its folders",
                    data.display()
                );
            }
            return self.folder(data);
        }
        let features = open(data, Modality::Image)?;
        let labels = labels.with_context(|| {
            format!("{} is a file of features: name their classes by {flag}", data.display())
        })?;
        let labels = read_labels(labels, features.ids())?;
        let mut buffer = Vec::new();
        let values = features.read_block(0..features.rows(), &mut buffer)?.to_vec();
        Ok(LabelledFeatures { dim: features.dim(), values, labels })
    }

    fn folder(&mut self, root: &Path) -> anyhow::Result<LabelledFeatures> {
        let folder = ImageFolder::open(root)?;
        let size = self.args.img_batch_size as usize;
        let (config, model) = self.model(root)?;
        let transform = ImageTransform::new(config.vision.image_resolution);
        let ids: Vec<Id> =
            folder.images.iter().map(|(path, _)| Id::Text(path.display().to_string())).collect();
        let paths: HashMap<&Id, &Path> =
            ids.iter().zip(folder.images.iter().map(|(path, _)| path.as_path())).collect();
        let read = |id: &Id| {
            let path = paths.get(id).copied().unwrap_or(Path::new(""));
            fs::read(path).map_err(DataError::io(path))
        };
        let mut values = Vec::new();
        let bar = progress(ids.len(), "pictures");
        image_features(model, &ids, read, &transform, size, |ids, features| {
            values.extend_from_slice(features);
            bar.inc(ids.len() as u64);
            Ok::<(), std::convert::Infallible>(())
        })?;
        bar.finish_and_clear();
        // Refuses features that are zero or not finite.
        let features = Features::new(ids, config.vision.embed_dim, values)?;
        let labels =
            folder.images.iter().map(|&(_, class)| folder.classes[class].clone()).collect();
        Ok(LabelledFeatures { dim: features.dim(), values: features.data().to_vec(), labels })
    }

    fn model(&mut self, root: &Path) -> anyhow::Result<&(ClipConfig, Clip)> {
        if self.loaded.is_none() {
            let weights = self.args.resume.as_ref().with_context(|| {
                format!("{} is a folder of pictures: name the weights by --resume", root.display())
            })?;
            let config = self.args.towers.config()?;
            let device = self.args.device.open()?;
            let model = model::load(&config, weights, &device)?;
            self.loaded = Some((config, self.args.precision.apply(model)?));
        }
        self.loaded.as_ref().context("no model")
    }
}
