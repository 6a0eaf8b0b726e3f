//! Time and peak memory of encoding and training, each case in a process of its own.

use std::{process::Command, time::Instant};

use anyhow::{Context, bail};
use burn::{
    module::Module,
    tensor::{Device, Distribution, Tensor},
};
use clap::{Args, ValueEnum};
use cn_clip_model::{
    Clip, ClipConfig, DeviceSpec, Pass, Precision, checkpoint::AdamWSettings, normalize,
};
use cn_clip_train::{
    loss::{Gathered, tile_columns},
    metrics::peak_memory_mib,
    optimizer::{AdamW, DecayGroups},
    step::{MicroBatch, Step, StepOptions},
};

use crate::peers::{Measured, median};

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
    /// Pairs of the tiled loss
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
        let batch = self.inputs(&config);
        let seconds = match case {
            Case::TrainStep => self.train(&config, &batch, &device)?,
            Case::TiledLoss => self.tiled_loss(&device),
            _ => self.encode(case, &config, &batch, &device),
        };
        if self.json {
            let peak_mib = peak_memory_mib().unwrap_or(f64::NAN);
            println!("{}", serde_json::to_string(&Measured { seconds, peak_mib })?);
            return Ok(());
        }
        let median = median(&seconds);
        let name = case.to_possible_value().context("a case without a name")?;
        let peak = peak_memory_mib().map_or("-".to_string(), |peak| format!("{peak:.0}"));
        let count = if matches!(case, Case::TiledLoss) { self.pairs } else { self.batch };
        let rate = count as f64 / median;
        println!("{:<14} {median:>10.3} {rate:>12.2} {peak:>10}", name.get_name());
        Ok(())
    }

    fn inputs(&self, config: &ClipConfig) -> MicroBatch {
        let resolution = config.vision.image_resolution;
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let values = self.batch * 3 * resolution * resolution;
        let ids = self.batch * self.context_length;
        let words = (config.text.vocab_size as u32 - 1).clamp(1, 20_000);
        MicroBatch {
            pixels: (0..values).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect(),
            tokens: (0..ids).map(|_| 1 + (next() % words) as i32).collect(),
            size: self.batch,
            resolution,
            context_length: self.context_length,
        }
    }

    /// Seconds of every round.
    fn time(&self, mut round: impl FnMut(u64)) -> Vec<f64> {
        (0..(self.warmup + self.rounds) as u64)
            .map(|index| {
                let start = Instant::now();
                round(index);
                start.elapsed().as_secs_f64()
            })
            .skip(self.warmup)
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
        self.time(|_| {
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
        self.time(|_| {
            let local = gathered.statistics(50.0, tile);
            let (images, texts) = (&local.image_rows, &local.text_rows);
            let gradient = gathered.gradient(&local, images, texts, 50.0, tile);
            gradient.logit_scale.into_data();
        })
    }

    fn train(
        &self,
        config: &ClipConfig,
        batch: &MicroBatch,
        device: &Device,
    ) -> anyhow::Result<Vec<f64>> {
        let host = self.device.is_host();
        let model = Clip::init(config, &device.clone().autodiff(), 0);
        let settings = AdamWSettings {
            learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-6,
            weight_decay: 0.2,
        };
        let mut optimizer = AdamW::new(&model, settings, DecayGroups::default(), host);
        let options = StepOptions {
            mask_ratio: self.mask_ratio,
            checkpointing: self.grad_checkpointing,
            precision: self.precision,
            // As in training.
            concurrent_towers: host && !self.grad_checkpointing && !self.sequential_towers,
            ..StepOptions::default()
        };
        let mut model = Some(model);
        let mut failure = None;
        let seconds = self.time(|index| {
            if let Some(before) = model.take() {
                let step = Step::local(options, 0);
                let output = match step.run(&before, std::slice::from_ref(batch), index) {
                    Ok(output) => output,
                    Err(error) => return failure = Some(error),
                };
                let after = optimizer.step(before, output.gradients, settings.learning_rate, 1.0);
                after.valid().logit_scale.val().into_data();
                model = Some(after);
            }
        });
        failure.map_or(Ok(seconds), |error| Err(error.into()))
    }
}
