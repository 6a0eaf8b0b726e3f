//! `cn-clip check`: a look at data, weights and settings before training.

use burn::tensor::Device;
use clap::Args;
use cn_clip_data::{
    forms,
    inspect::{InspectOptions, inspect},
};
use cn_clip_model::{
    Clip, ImageTower,
    checkpoint::{self, Checkpoint},
};
use cn_clip_train::{
    Plan, begins_from,
    preflight::{self, Setup},
};

use anyhow::Context;

use super::{print, train};

/// Flags of `cn-clip check`: those of `cn-clip train`, and how much is looked at.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    train: train::TrainArgs,
    /// Pairs to look at, spread over the data set
    #[arg(long, value_name = "N", default_value_t = 100_000, help_heading = "Check")]
    pairs: usize,
    /// Pictures of them to decode
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Check")]
    pictures: usize,
}

/// Prints what was found; a line with `!` asks for something to be done.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let (config, world) = train::config_of(&args.train)?;
    let model_config = args.train.towers.config()?;
    let source = forms::open(&config.train_data).context("--train-data")?;
    let plan = Plan::new(&config, &source, world)?;
    config.validate(plan.pairs, world, model_config.text.max_positions)?;
    let options = InspectOptions {
        pairs: args.pairs,
        pictures: args.pictures,
        context_length: config.context_length,
    };
    let inspection = inspect(&source, &options)?;

    let device = Device::default();
    let from = begins_from(&config);
    let model = match &from {
        Some(path) => {
            let model = Clip::init(&model_config, &device, config.seed);
            checkpoint::load(model, &Checkpoint::open(path)?)?
        }
        None => train::initial_weights(&args.train, &model_config, &device)?,
    };
    let global = config.batch_size * config.accum_freq * world;
    let setup = Setup {
        plan,
        world,
        logit_scale: model.logit_scale.val().into_scalar(),
        resnet: matches!(model.visual, ImageTower::ResNet(_)),
    };
    let mut found = preflight::data(&config, &inspection, global);
    match (&from, &config.resume) {
        // Its settings were judged when it began.
        (Some(path), None) => found.push(preflight::continued(&config, path)),
        _ => found.extend(preflight::settings(&config, &setup)),
    }
    let line = |finding: &preflight::Finding| {
        format!("{} {}\n", if finding.warning { "!" } else { "-" }, finding.message)
    };
    print(&found.iter().map(line).collect::<String>())
}
