//! `cn-clip demo`: from data to a searched and scored model in one command.

mod recipe;
mod score;
mod summary;

use std::{
    env, fs,
    io::{self, IsTerminal},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;
use cn_clip_data::{
    atomic::write_atomically,
    augment::AffineJitter,
    forms::Source,
    image::{ImageTransform, PixelTransform},
    lmdb::{BuildOptions, LmdbDataset, build_lmdb_dataset},
};
use cn_clip_eval::report::Curve;
use cn_clip_model::{Clip, ClipConfig};
use cn_clip_train::{Dataset, Event, Job, Rank, TrainConfig, train};
use include_dir::{Dir, include_dir};

use super::{device::DeviceArg, note, print};
use score::Scores;
use summary::Summary;

/// Pictures of emoji with Chinese names (`assets/emoji/README.md`).
static EMOJI: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/emoji");
/// File that marks a directory as the demonstration's own.
const MARK: &str = "cn-clip-demo.txt";

/// Flags of `cn-clip demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Train for about a minute only
    #[arg(long)]
    quick: bool,
    /// Train for that many steps only, to see whether everything works
    #[arg(long, value_name = "N", conflicts_with = "quick")]
    steps: Option<NonZeroU32>,
    /// Directory of everything it writes
    #[arg(long, value_name = "DIR", default_value = "demo")]
    output: PathBuf,
    /// Seed of initial weights, sample order and augmentation
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArg,
}

/// Runs the demonstration.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let device = args.device.open()?;
    let directory = &args.output;
    prepare(directory)?;
    let data = directory.join("data");
    note(&format!("Data: pictures of emoji with their Chinese names, in {}", data.display()));
    build_lmdb_dataset(&BuildOptions {
        data_dir: data.clone(),
        splits: ["train", "valid", "test"].map(str::to_string).to_vec(),
        lmdb_dir: None,
        progress: false,
    })?;
    let (config, training) = configure(args)?;
    note(&format!("Training: log and checkpoints are in {}", directory.join("logs").display()));
    let (model, curves) = fit(args, &config, &training, device)?;
    let trained = began.elapsed();
    let scores = Scores::new(&model, &config, directory)?;
    let summary = Summary { scores, curves, training, trained, total: began.elapsed() };
    let page = directory.join("report.html");
    summary.page().write(&page).with_context(|| format!("writing {}", page.display()))?;
    print(&format!("{summary}\nCurves and searches: {}\n", page.display()))?;
    #[cfg(feature = "serve")]
    print(&format!("Search the test pictures in a browser:\n  {}\n", serve_command(args)?))?;
    Ok(())
}

/// The command that serves what has been trained, by this binary, for a shell.
#[cfg(feature = "serve")]
fn serve_command(args: &DemoArgs) -> anyhow::Result<String> {
    let program = env::args_os().next();
    let program =
        program.map_or("cn-clip".into(), |program| program.to_string_lossy().into_owned());
    let mut words = vec![program, "serve".to_string()];
    for (flag, path) in [
        ("--checkpoint", "logs/emoji/checkpoints/epoch_latest.pt"),
        ("--vision-model", "vision.json"),
        ("--text-model", "text.json"),
        ("--image-feats", "features/test_imgs.img_feat.jsonl"),
        ("--images", "data/lmdb/test"),
    ] {
        words.extend([flag.to_string(), args.output.join(path).display().to_string()]);
    }
    if !args.device.device.is_host() {
        words.extend(["--device".to_string(), args.device.device.to_string()]);
    }
    shlex::try_join(words.iter().map(String::as_str)).context("the command that serves the model")
}

/// Writes data and model configuration to a new directory, or to that of an earlier demonstration.
fn prepare(directory: &Path) -> anyhow::Result<()> {
    let mark = directory.join(MARK);
    let entries = fs::read_dir(directory).map(|mut entries| entries.next().is_some());
    if entries.unwrap_or(false) && !mark.is_file() {
        bail!("{} holds other files: choose another --output", directory.display());
    }
    let data = directory.join("data");
    fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        write_atomically(&path, text.as_bytes())
            .with_context(|| format!("writing {}", path.display()))
    };
    write(MARK, "Written by `cn-clip demo`, which replaces what is here when it runs again.\n")?;
    write("vision.json", recipe::VISION)?;
    write("text.json", recipe::TEXT)?;
    EMOJI.extract(&data).with_context(|| format!("writing {}", data.display()))
}

fn length(args: &DemoArgs) -> u64 {
    match (args.steps, args.quick) {
        (Some(steps), _) => steps.get().into(),
        (None, true) => recipe::QUICK_STEPS,
        (None, false) => recipe::FULL_STEPS,
    }
}

fn configure(args: &DemoArgs) -> anyhow::Result<(ClipConfig, TrainConfig)> {
    let path = |name: &str| args.output.join(name).display().to_string();
    let (vision, text) = (path("vision.json"), path("text.json"));
    let config = ClipConfig::load(&vision, &text)?;
    let training = TrainConfig {
        vision_model: vision,
        text_model: text,
        train_data: path("data/lmdb/train"),
        val_data: Some(path("data/lmdb/valid")),
        device: args.device.device.to_string(),
        host: args.device.device.is_host(),
        seed: args.seed,
        progress: true,
        console: false,
        ..recipe::training(&args.output, length(args))
    };
    Ok((config, training))
}

fn fit(
    args: &DemoArgs,
    config: &ClipConfig,
    training: &TrainConfig,
    device: burn::tensor::Device,
) -> anyhow::Result<(Clip, [Curve; 2])> {
    let open = |split: &str, transform: Arc<dyn PixelTransform>| {
        let source = LmdbDataset::open(args.output.join("data/lmdb").join(split))?;
        anyhow::Ok(Dataset { source: Source::Pairs(Arc::new(source)), transform })
    };
    let resolution = config.vision.image_resolution;
    let data = open("train", Arc::new(AffineJitter::new(resolution, recipe::jitter())))?;
    let validation = open("valid", Arc::new(ImageTransform::new(resolution)))?;
    let model = Clip::init(config, &device.autodiff(), args.seed);
    let mut curves =
        ["training", "validation"].map(|name| Curve { name: name.to_string(), points: Vec::new() });
    let mut observe = |event: Event| {
        match event {
            Event::Step { step, loss, .. } => curves[0].points.push((step, loss)),
            Event::Validation { step, result } => {
                curves[1].points.push((step, result.loss));
                // On a terminal the progress bar shows that it goes on.
                if !io::stderr().is_terminal() {
                    note(&format!("step {step}: validation loss {:.3}", result.loss));
                }
            }
        }
        true
    };
    let job = Job {
        config: training,
        max_positions: config.text.max_positions,
        data: &data,
        validation: Some(&validation),
    };
    let outcome = train(job, Rank::only(model), &mut observe)?;
    Ok((outcome.inference_model(), curves))
}
