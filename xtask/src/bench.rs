//! Time and peak memory of encoding and training, each case in a process of its own.

use std::{process::Command, time::Instant};

use anyhow::{Context, bail};
use burn::tensor::{Device, Distribution, Tensor};
use clap::{Args, ValueEnum};
use cn_clip_data::Id;
use cn_clip_eval::{DEFAULT_BLOCK, features::Features, knn::top_k};
use cn_clip_model::{Clip, ClipConfig, DeviceSpec, Pass, Precision, normalize};
use cn_clip_train::{
    loss::{Gathered, tile_columns},
    metrics::peak_memory_mib,
    step::{MicroBatch, StepOptions},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use crate::{
    peers::{Measured, median},
    training::{self, Trainer, random_batch},
};

/// Flags of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only this case
    #[arg(long, value_enum)]
    case: Option<Case>,
    /// Image tower
    #[arg(long, default_value = "ViT-B-16")]
    vision_model: String,
    /// Text tower
    #[arg(long, default_value = "RoBERTa-wwm-ext-base-chinese")]
    text_model: String,
    /// Pairs of a batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens per text, all of them used
    #[arg(long, default_value_t = 52)]
    context_length: usize,
    /// Share of patches that FLIP masks in training
    #[arg(long, default_value_t = 0.0)]
    mask_ratio: f64,
    /// Gradient checkpointing in training
    #[arg(long)]
    grad_checkpointing: bool,
    /// One tower after the other in training, also on the processor
    #[arg(long)]
    sequential_towers: bool,
    /// Repetitions after those to warm up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Repetitions that are not measured; graphics processors compile and choose kernels in them
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Numbers that the towers compute with
    #[arg(long, default_value = "fp32")]
    precision: Precision,
    /// Device
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Pairs of the tiled loss, candidates of top-k
    #[arg(long, default_value_t = 65_536)]
    pairs: usize,
    /// Print seconds and peak memory as JSON
    #[arg(long, requires = "case")]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Case {
    /// Normalised image features
    EncodeImage,
    /// Normalised text features
    EncodeText,
    /// Normalised features of both
    Forward,
    /// Forward, backward and AdamW
    TrainStep,
    /// Contrastive loss and its gradient by 512-dimensional features, far more pairs than a batch
    TiledLoss,
    /// The 10 best of many candidates for 1,000 queries, 512-dimensional features
    TopK,
}

/// What `--json` prints.
#[derive(Serialize)]
struct WithFirst {
    #[serde(flatten)]
    measured: Measured,
    /// Seconds of the first round, in which kernels may be compiled.
    first_pass: f64,
}

/// Runs the cases.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.batch == 0 || args.rounds == 0 {
        bail!("--batch and --rounds must be at least 1");
    }
    if let Some(case) = args.case {
        return args.measure(case);
    }
    println!(
        "{} + {}, batch {}, {} tokens, {}, {} threads",
        args.vision_model,
        args.text_model,
        args.batch,
        args.context_length,
        args.device,
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    println!("{:<14} {:>10} {:>12} {:>10}", "case", "median s", "per second", "peak MiB");
    let program = std::env::current_exe().context("finding this program")?;
    // The tiled loss takes minutes: only when it is asked for.
    for case in [Case::EncodeImage, Case::EncodeText, Case::Forward, Case::TrainStep] {
        let name = case.to_possible_value().context("a case without a name")?;
        let mut flags: Vec<String> = std::env::args().skip(1).collect();
        flags.push(format!("--case={}", name.get_name()));
        let status = Command::new(&program).args(flags).status().context("starting a case")?;
        if !status.success() {
            bail!("{} failed", name.get_name());
        }
    }
    Ok(())
}

impl BenchArgs {
    fn measure(&self, case: Case) -> anyhow::Result<()> {
        let config = ClipConfig::load(&self.vision_model, &self.text_model)?;
        let device = self.device.open()?;
        if !self.precision.is_supported(&device) {
            bail!("{} does not compute in {}", self.device, self.precision);
        }
        let batch = random_batch(&config, self.batch, self.context_length);
        let rounds = match case {
            Case::TrainStep => self.train(&config, &batch, &device)?,
            Case::TiledLoss => self.tiled_loss(&device),
            Case::TopK => self.top_k(&device)?,
            _ => self.encode(case, &config, &batch, &device),
        };
        let seconds = rounds[self.warmup..].to_vec();
        if self.json {
            let peak_mib = peak_memory_mib().unwrap_or(f64::NAN);
            let measured =
                WithFirst { measured: Measured { seconds, peak_mib }, first_pass: rounds[0] };
            println!("{}", serde_json::to_string(&measured)?);
            return Ok(());
        }
        let median = median(&seconds);
        let name = case.to_possible_value().context("a case without a name")?;
        let peak = peak_memory_mib().map_or("-".to_string(), |peak| format!("{peak:.0}"));
        let count =
            if matches!(case, Case::TiledLoss | Case::TopK) { self.pairs } else { self.batch };
        let rate = count as f64 / median;
        println!("{:<14} {median:>10.3} {rate:>12.2} {peak:>10}", name.get_name());
        Ok(())
    }

    /// Seconds of every round, those to warm up included.
    fn time(&self, mut round: impl FnMut()) -> Vec<f64> {
        (0..self.warmup + self.rounds)
            .map(|_| {
                let start = Instant::now();
                round();
                start.elapsed().as_secs_f64()
            })
            .collect()
    }

    fn encode(
        &self,
        case: Case,
        config: &ClipConfig,
        batch: &MicroBatch,
        device: &Device,
    ) -> Vec<f64> {
        let model = self.precision.copy(&Clip::init(config, device, 0));
        let (pixels, tokens) = (batch.pixels(device), batch.tokens(device));
        self.time(|| {
            if !matches!(case, Case::EncodeText) {
                let features = model.encode_image(pixels.clone(), None, Pass::Eval);
                normalize(features).into_data();
            }
            if !matches!(case, Case::EncodeImage) {
                let features = model.encode_text(tokens.clone(), Pass::Eval);
                normalize(features).into_data();
            }
        })
    }

    fn tiled_loss(&self, device: &Device) -> Vec<f64> {
        let features = || {
            let distribution = Distribution::Normal(0.0, 1.0);
            normalize(Tensor::<2>::random([self.pairs, 512], distribution, device))
        };
        let gathered = Gathered::local(features(), features());
        let tile = tile_columns(self.pairs);
        self.time(|| {
            let local = gathered.statistics(50.0, tile);
            let (images, texts) = (&local.image_rows, &local.text_rows);
            let gradient = gathered.gradient(&local, images, texts, 50.0, tile);
            gradient.logit_scale.into_data();
        })
    }

    fn top_k(&self, device: &Device) -> anyhow::Result<Vec<f64>> {
        const WIDTH: usize = 512;
        let features = |rows: usize, seed: u64| {
            let mut random = StdRng::seed_from_u64(seed);
            let values = (0..rows * WIDTH).map(|_| random.random_range(-1.0..1.0)).collect();
            Features::new((0..rows as i64).map(Id::from).collect(), WIDTH, values)
        };
        let (queries, candidates) = (features(1_000, 1)?, features(self.pairs, 2)?);
        let mut failure = None;
        let seconds = self.time(|| {
            let found = top_k(&queries, &candidates, 10, DEFAULT_BLOCK, device);
            failure = failure.take().or_else(|| found.err());
        });
        failure.map_or(Ok(seconds), |error| Err(error.into()))
    }

    fn train(
        &self,
        config: &ClipConfig,
        batch: &MicroBatch,
        device: &Device,
    ) -> anyhow::Result<Vec<f64>> {
        let host = self.device.is_host();
        let model = Clip::init(config, &device.clone().autodiff(), 0);
        // As in training.
        let concurrent = host && !self.grad_checkpointing && !self.sequential_towers;
        let options = StepOptions {
            precision: self.precision,
            ..training::options(self.mask_ratio, self.grad_checkpointing, concurrent)
        };
        let mut trainer = Trainer::new(model, options, host);
        let mut failure = None;
        let seconds = self.time(|| failure = failure.take().or_else(|| trainer.step(batch).err()));
        failure.map_or(Ok(seconds), Err)
    }
}
