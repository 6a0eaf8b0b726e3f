//! This program as a contender.

use std::{
    fs,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use burn::{module::Module, tensor::Device};
use clap::Args;
use cn_clip_data::{
    image::{ImageTransform, PixelTransform},
    tokenizer::CONTEXT_LENGTH,
};
use cn_clip_model::{
    Clip, DeviceSpec, Pass, Precision,
    checkpoint::{self, Checkpoint},
};
use cn_clip_train::{metrics::peak_memory_mib, step::MicroBatch};
use rayon::{ThreadPoolBuilder, prelude::*};

use super::{
    cases::{Texts, Tower, Work},
    inputs::{config, tokens_file},
    process::{Answer, Request},
};
use crate::training::{Trainer, options};

/// Flags of the worker.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Weights and inputs
    #[arg(long)]
    directory: PathBuf,
    /// Numbers to encode in
    #[arg(long)]
    precision: Precision,
}

/// Does what lines on standard input tell.
pub fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    let (directory, precision) = (args.directory.clone(), args.precision);
    let mut inputs = Inputs { directory, precision, model: None };
    let mut prepared: Vec<(Work, Run)> = Vec::new();
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?).context("a request")?;
        let index = match prepared.iter().position(|(work, _)| *work == request.case) {
            Some(index) => index,
            None => {
                let run = inputs.prepare(&request.case)?;
                prepared.push((request.case, run));
                prepared.len() - 1
            }
        };
        let start = Instant::now();
        let values = prepared[index].1()?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(path) = request.output {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            fs::write(&path, bytes).with_context(|| path.clone())?;
        }
        let peak_mib = peak_memory_mib().unwrap_or(f64::NAN);
        writeln!(out, "{}", serde_json::to_string(&Answer { seconds, peak_mib })?)?;
        out.flush()?;
    }
    Ok(())
}

/// The part of a case that is timed; gives the outputs.
type Run = Box<dyn FnMut() -> anyhow::Result<Vec<f32>>>;

struct Inputs {
    directory: PathBuf,
    precision: Precision,
    model: Option<Clip>,
}

impl Inputs {
    fn prepare(&mut self, work: &Work) -> anyhow::Result<Run> {
        let device = "cpu".parse::<DeviceSpec>()?.open()?;
        let resolution = config()?.vision.image_resolution;
        Ok(match *work {
            Work::Encode { tower, batch, texts } => {
                let model = match self.model.take() {
                    Some(model) => model,
                    None => self.precision.copy(&load(&self.directory, &device)?.valid()),
                };
                self.model = Some(model.clone());
                let batch = self.batch(batch, resolution, texts)?;
                Box::new(move || {
                    let features = match tower {
                        Tower::Image => model.encode_image(batch.pixels(&device), None, Pass::Eval),
                        Tower::Text => model.encode_text(batch.tokens(&device), Pass::Eval),
                    };
                    Ok(features.into_data().try_into_vec()?)
                })
            }
            Work::Train { batch, texts, mask_ratio, checkpointing, dropout } => {
                let batch = self.batch(batch, resolution, texts)?;
                let mut config = config()?;
                config.text.hidden_dropout = dropout;
                config.text.attention_dropout = dropout;
                let model = Clip::init(&config, &device.autodiff(), 0);
                let model = checkpoint::load(model, &self.checkpoint()?)?;
                let mut trainer =
                    Trainer::new(model, options(mask_ratio, checkpointing, true), true);
                Box::new(move || Ok(vec![trainer.step(&batch)?]))
            }
            Work::Preprocess { threads } => {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
                let mut paths: Vec<PathBuf> = fs::read_dir(self.directory.join("pictures"))?
                    .map(|entry| Ok(entry?.path()))
                    .collect::<io::Result<_>>()?;
                paths.sort();
                let transform = ImageTransform::new(resolution);
                let length = 3 * resolution * resolution;
                Box::new(move || {
                    let mut out = vec![0.0; paths.len() * length];
                    let parts = out.par_chunks_mut(length).zip(&paths);
                    pool.install(|| {
                        parts.try_for_each(|(out, path)| {
                            transform.apply(&fs::read(path)?, 0, out)?;
                            anyhow::Ok(())
                        })
                    })?;
                    Ok(out)
                })
            }
            Work::Load => {
                let directory = self.directory.clone();
                Box::new(move || {
                    let scale = load(&directory, &device)?.logit_scale.val();
                    Ok(scale.into_data().try_into_vec()?)
                })
            }
            Work::Whole(_) => bail!("not the work of a worker"),
        })
    }

    fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        Ok(Checkpoint::open(self.directory.join("weights.pt"))?)
    }

    fn batch(&self, size: usize, resolution: usize, texts: Texts) -> anyhow::Result<MicroBatch> {
        let read = |path: &Path, count: usize| {
            let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
            bytes.truncate(4 * count);
            anyhow::Ok(bytes)
        };
        let pixels = read(&self.directory.join("pixels.f32"), size * 3 * resolution * resolution)?;
        let tokens = read(&tokens_file(&self.directory, texts), size * CONTEXT_LENGTH)?;
        Ok(MicroBatch {
            pixels: pixels.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            tokens: tokens.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect(),
            size,
            resolution,
            context_length: CONTEXT_LENGTH,
        })
    }
}

fn load(directory: &Path, device: &Device) -> anyhow::Result<Clip> {
    let checkpoint = Checkpoint::open(directory.join("weights.pt"))?;
    Ok(checkpoint::load(Clip::init(&config()?, device, 0), &checkpoint)?)
}
