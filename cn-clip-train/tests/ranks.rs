//! Several ranks train as one process does with the same global batch.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;
#[path = "support/steps.rs"]
mod steps;

use std::{collections::HashMap, sync::Arc};

use burn::tensor::Device;
use cn_clip_data::{
    Pair,
    forms::Source,
    image::{ImageError, PixelTransform},
    source::MemoryDataset,
};
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{self, Checkpoint},
};
use cn_clip_train::{
    Dataset, Event, Job, Rank, RunLength, TrainConfig, TrainError,
    communicator::{Communicator, Local, on_threads},
    step::{MicroBatch, Step, StepOptions},
    train,
};
use golden::{Golden, fixture, norm_error, without_gradient};
use steps::{gradients, values};

/// The recorded tiny model with its recorded weights.
fn recorded(dropout: f64) -> Clip {
    let text = std::fs::read(fixture("model/vit_tiny/config.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut model = model["model_config"].take();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let mut config: ClipConfig = serde_json::from_value(model).unwrap();
    (config.text.hidden_dropout, config.text.attention_dropout) = (dropout, dropout);
    let file = fixture("model/vit_tiny/checkpoint_fp16.pt");
    let model = Clip::init(&config, &Device::default().autodiff(), 0);
    checkpoint::load(model, &Checkpoint::open(file).unwrap()).unwrap()
}

#[test]
fn two_ranks_give_the_recorded_gradients_of_gather_with_grad() {
    let text = std::fs::read(fixture("model/vit_tiny/dist_world2.json")).unwrap();
    let recording: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let expected = &recording["modes"]["gather_with_grad"];
    let values = Golden::open("model/vit_tiny/dist_world2.safetensors");
    let inputs = Golden::open("model/vit_tiny/forward_eval.safetensors");
    let (pixels, tokens) = (inputs.get("pixels"), inputs.get("tokens"));
    let half = recording["rows"].as_u64().unwrap() as usize / 2;
    let (picture, text) = (pixels.values.len() / pixels.shape[0], tokens.shape[1]);
    let outputs = on_threads(2, |rank| {
        let model = recorded(0.0);
        let rows = rank.rank() * half..(rank.rank() + 1) * half;
        let batch = MicroBatch {
            pixels: pixels.values[rows.start * picture..rows.end * picture].to_vec(),
            tokens: tokens.ints()[rows.start * text..rows.end * text].to_vec(),
            size: half,
            resolution: pixels.shape[2],
            context_length: text,
        };
        let step =
            Step { options: StepOptions::default(), communicator: rank, teacher: None, seed: 0 };
        let output = step.run(&model, &[batch], 0)?;
        Ok((output.figures.loss, gradients(&model, &output)))
    });
    let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for (rank, (loss, gradients)) in outputs.unwrap().into_iter().enumerate() {
        let recorded_loss = expected["loss_per_rank"][rank].as_f64().unwrap() as f32;
        assert!((loss - recorded_loss).abs() < 1e-4 * recorded_loss, "{loss} {recorded_loss}");
        for name in ["logit_scale", "text_projection", "visual.class_embedding", "visual.proj"] {
            let recorded = format!("gather_with_grad.grad.{name}");
            values.check(&recorded, &gradients[name], 1e-3);
        }
        let norms = expected["grad_norm_after_average"].as_object().unwrap();
        assert_eq!(norms.len(), gradients.len());
        let largest = norms.values().filter_map(|norm| norm.as_f64()).fold(0.0, f64::max);
        for (key, recorded_norm) in norms {
            let (got, recorded_norm) = (norm(&gradients[key]), recorded_norm.as_f64().unwrap());
            let allowed = 1e-3 * recorded_norm + 1e-7 * largest;
            assert!((got - recorded_norm).abs() < allowed, "{key}: {got} {recorded_norm}");
        }
    }
}

/// Pixels made of the bytes of a picture, and of the seed when augmented.
struct Bytes {
    augment: bool,
}

impl PixelTransform for Bytes {
    fn resolution(&self) -> usize {
        32
    }

    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        let seed = if self.augment { seed as u32 & 0xff } else { 0 };
        let mut state = u32::from(bytes[0]).wrapping_mul(2_654_435_761) ^ seed;
        for (index, value) in out.iter_mut().enumerate() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            // Stripes of a width and a phase of their own.
            let stripes = (index as f32 / (2.0 + f32::from(bytes[0]))).sin();
            *value = 0.2 * noise + 2.0 * stripes;
        }
        Ok(())
    }
}

fn data(augment: bool) -> Dataset {
    let words = ["红", "黄", "蓝", "绿", "大", "小", "狗", "猫", "车", "花"];
    let pair = |index: i64| Pair {
        image_id: (index % 40).into(),
        text_id: index.into(),
        text: (0..3 + index % 9)
            .map(|word| words[((index * 7 + word * 3) % 10) as usize])
            .collect(),
    };
    let images = (0..40).map(|index: i64| (index.into(), vec![index as u8])).collect();
    let source = MemoryDataset { pairs: (0..48).map(pair).collect(), images };
    Dataset { source: Source::Pairs(Arc::new(source)), transform: Arc::new(Bytes { augment }) }
}

/// A run of 20 steps with 16 pairs each.
fn config(world: usize, accum_freq: usize, grad_checkpointing: bool) -> TrainConfig {
    TrainConfig {
        logs: None,
        console: false,
        batch_size: 16 / world / accum_freq,
        valid_batch_size: 4,
        accum_freq,
        grad_checkpointing,
        length: RunLength::Steps(20),
        mask_ratio: 0.25,
        warmup: 2,
        num_workers: 1,
        valid_recall: true,
        log_interval: 1,
        ..TrainConfig::default()
    }
}

fn alone(communicator: &dyn Communicator, model: Clip) -> Rank<'_> {
    Rank { communicator, model, teacher: None }
}

/// Weights at the end of a run, and losses and recalls on the way.
type Run = (HashMap<String, Vec<f32>>, Vec<f32>);

fn run(config: &TrainConfig, communicator: &dyn Communicator) -> Result<Run, TrainError> {
    let (data, validation) = (data(true), data(false));
    let mut numbers = Vec::new();
    let mut observe = |event| {
        match event {
            Event::Step { loss, .. } => numbers.push(loss),
            Event::Validation { result, .. } => {
                let recall = result.recall.unwrap();
                numbers.extend(recall.text_to_image.iter().chain(&recall.image_to_text));
            }
        }
        true
    };
    let job = Job { config, max_positions: 512, data: &data, validation: Some(&validation) };
    let outcome = train(job, alone(communicator, recorded(0.1)), &mut observe)?;
    assert_eq!(outcome.steps, 20);
    Ok((values(&outcome.model), numbers))
}

#[test]
fn any_number_of_ranks_ends_with_the_same_weights() {
    let (expected, losses) = run(&config(1, 1, false), &Local).unwrap();
    assert!(losses.len() > 20);
    let before = values(&recorded(0.1));
    for (world, accum_freq, checkpointing) in
        [(2, 1, false), (2, 2, false), (4, 1, true), (4, 2, true)]
    {
        let config = config(world, accum_freq, checkpointing);
        let outcomes = on_threads(world, |rank| run(&config, rank)).unwrap();
        for (weights, numbers) in &outcomes {
            assert!(*weights == outcomes[0].0, "every rank has the same bits");
            for (ours, one) in numbers.iter().zip(&losses) {
                assert!((ours - one).abs() < 1e-4 * one, "{world} ranks: {numbers:?} {losses:?}");
            }
        }
        let mut moved = 0.0f32;
        for (key, expected) in &expected {
            let random = without_gradient(key, expected.len());
            let rest = |values: &[f32]| [&values[..random.start], &values[random.end..]].concat();
            let (ours, expected) = (rest(&outcomes[0].0[key]), rest(expected));
            if expected.is_empty() {
                continue;
            }
            let error = norm_error(&ours, &expected);
            assert!(error < 1e-5, "{world} ranks, {accum_freq} micro-batches, {key}: {error:e}");
            moved = moved.max(norm_error(&rest(&before[key]), &expected));
        }
        assert!(moved > 1e-2, "20 steps move weights: {moved}");
    }
}

#[test]
fn a_rank_that_fails_ends_the_run_and_is_named() {
    let config = config(2, 1, false);
    let outcome = on_threads(2, |rank| {
        let (data, mut steps) = (data(true), 0);
        let job = Job { config: &config, max_positions: 512, data: &data, validation: None };
        let mut observe = |_| {
            steps += 1;
            assert!(rank.rank() == 0 || steps < 3, "out of memory");
            true
        };
        train(job, alone(rank, recorded(0.0)), &mut observe).map(|outcome| outcome.steps)
    });
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("rank 1") && message.contains("out of memory"), "{message}");
}

#[test]
fn any_rank_may_stop_the_run() {
    let config = config(2, 1, false);
    let steps = on_threads(2, |rank| {
        let (data, mut steps) = (data(true), 0);
        let job = Job { config: &config, max_positions: 512, data: &data, validation: None };
        let mut observe = |_| {
            steps += 1;
            rank.rank() == 0 || steps < 3
        };
        train(job, alone(rank, recorded(0.0)), &mut observe).map(|outcome| outcome.steps)
    });
    assert_eq!(steps.unwrap(), [3, 3]);
}

#[test]
fn a_run_that_is_stopped_in_mid_epoch_gives_the_epoch_no_number() {
    let logs = tempfile::tempdir().unwrap();
    let config = TrainConfig { logs: Some(logs.path().to_path_buf()), ..config(2, 1, false) };
    let checkpoints = config.checkpoints().unwrap();
    // An epoch has three steps: stopped in the midst of the second epoch, then at its end.
    for (last, names) in [
        (5, &["epoch1.pt", "epoch_latest.pt"][..]),
        (6, &["epoch1.pt", "epoch2.pt", "epoch_latest.pt"]),
    ] {
        let steps = on_threads(2, |rank| {
            let data = data(true);
            let job = Job { config: &config, max_positions: 512, data: &data, validation: None };
            let mut observe = |event| !matches!(event, Event::Step { step, .. } if step >= last);
            train(job, alone(rank, recorded(0.0)), &mut observe).map(|outcome| outcome.steps)
        });
        assert_eq!(steps.unwrap(), [last, last]);
        let mut found: Vec<String> = std::fs::read_dir(&checkpoints)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, names);
    }
}

#[test]
fn ranks_that_begin_differently_are_refused() {
    let config = config(2, 1, false);
    let outcome = on_threads(2, |rank| {
        let data = data(true);
        let job = Job { config: &config, max_positions: 512, data: &data, validation: None };
        let mut model = recorded(0.0);
        if rank.rank() == 1 {
            model.logit_scale =
                model.logit_scale.map(|scale| (scale + 0.5).detach().require_grad());
        }
        train(job, alone(rank, model), &mut |_| true).map(|outcome| outcome.steps)
    });
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("rank 1 begins"), "{message}");
}
