//! Batch norms over ranks: many ranks compute what one process computes with the same micro-batches.

#![allow(clippy::unwrap_used)]

#[path = "support/steps.rs"]
mod steps;

use std::collections::HashMap;

use cn_clip_model::{Clip, Precision};
use cn_clip_train::{
    communicator::{Communicator, Devices, on_threads},
    step::{MicroBatch, Step, StepOptions, StepOutput, Training},
};
use steps::{cut, run, running_statistics, worst};

fn resnet(seed: u64) -> Clip {
    steps::model_of(serde_json::json!([1, 2, 1, 1]), 0.2, seed)
}

/// Gradients by key, without that of the attention pool's bias of keys: softmax does not see it, and
/// its gradient is all rounding.
fn gradients(model: &Clip, output: &StepOutput) -> HashMap<String, Vec<f32>> {
    let mut gradients = steps::gradients(model, output);
    gradients.remove("visual.attnpool.k_proj.bias");
    gradients
}

/// A seed of initial weights with which no ReLU is so near its kink that a rounding opens or shuts
/// it: that makes the gradient of what is before it jump.
fn seed(parts: usize, options: StepOptions) -> u64 {
    let smooth = |seed: &u64| {
        let gradients_at = |offset: f32| {
            let mut batches = cut(parts);
            for batch in &mut batches {
                let noise = |index: usize| offset * (index as f32).sin();
                let pixels = batch.pixels.iter_mut().enumerate();
                pixels.for_each(|(index, pixel)| *pixel += noise(index));
            }
            let model = resnet(*seed);
            let output = Step::local(options, 5).run(&model, &batches, 9).unwrap();
            gradients(&model, &output)
        };
        let expected = gradients_at(0.0);
        [-3e-7, 3e-7].into_iter().all(|offset| worst(&gradients_at(offset), &expected) < 1e-5)
    };
    (0..50).find(smooth).unwrap()
}

/// The rows of a micro-batch that are a rank's.
fn share(batch: &MicroBatch, rank: usize, world: usize) -> MicroBatch {
    fn rows<T: Copy>(values: &[T], size: usize, rank: usize, world: usize) -> Vec<T> {
        values
            .chunks_exact(values.len() / size)
            .skip(rank)
            .step_by(world)
            .flatten()
            .copied()
            .collect()
    }
    MicroBatch {
        pixels: rows(&batch.pixels, batch.size, rank, world),
        tokens: rows(&batch.tokens, batch.size, rank, world),
        size: batch.size / world,
        ..*batch
    }
}

fn run_rank(rank: &Devices, model: &Clip, parts: usize, options: StepOptions) -> StepOutput {
    let step = Step { options, communicator: rank, teacher: None, seed: 5 };
    let batches = cut(parts);
    let world = rank.world_size();
    let own: Vec<_> = batches.iter().map(|batch| share(batch, rank.rank(), world)).collect();
    step.run(model, &own, 9).unwrap()
}

fn check(world: usize, parts: usize, options: StepOptions, limit: f64) {
    let seed = seed(parts, StepOptions { precision: Precision::Fp32, ..options });
    let whole = resnet(seed);
    let expected = run(&whole, parts, options);
    let expected_gradients = gradients(&whole, &expected);
    let expected_statistics = running_statistics(&whole);
    let options = StepOptions { sync_norm: true, ..options };
    let outputs = on_threads(world, |rank| {
        let model = resnet(seed);
        let output = run_rank(rank, &model, parts, options);
        Ok((output.figures.loss, gradients(&model, &output), running_statistics(&model)))
    });
    for (loss, gradients, statistics) in outputs.unwrap() {
        let error = worst(&gradients, &expected_gradients);
        assert!(error < limit, "{world} ranks, {parts} parts, {options:?}: {error:e}");
        assert!(
            f64::from((loss - expected.figures.loss).abs())
                < limit * f64::from(expected.figures.loss)
        );
        for (own, one) in statistics.iter().zip(&expected_statistics) {
            assert!(f64::from((own - one).abs()) < limit * f64::from(one.abs().max(1.0)));
        }
    }
}

#[test]
fn ranks_normalise_as_one_process_does() {
    for (world, parts) in [(2, 1), (4, 1), (2, 2), (4, 2)] {
        check(world, parts, StepOptions::default(), 1e-5);
    }
    let checkpointing = StepOptions { checkpointing: true, ..Default::default() };
    check(2, 2, checkpointing, 1e-5);
}

#[test]
fn stages_may_be_locked_and_towers_in_16_bits() {
    let locked = StepOptions { vision: Training::Last(2), ..Default::default() };
    check(2, 1, locked, 1e-5);
    let frozen = StepOptions { vision: Training::Frozen, ..Default::default() };
    check(2, 2, frozen, 1e-5);
    let narrow = StepOptions { precision: Precision::Bf16, ..Default::default() };
    check(2, 1, narrow, 5e-2);
}

#[test]
fn without_it_ranks_normalise_alone() {
    let whole = resnet(0);
    let expected = gradients(&whole, &run(&whole, 1, StepOptions::default()));
    let outputs = on_threads(2, |rank| {
        let model = resnet(0);
        Ok(gradients(&model, &run_rank(rank, &model, 1, StepOptions::default())))
    });
    assert!(outputs.unwrap().iter().all(|found| worst(found, &expected) > 1e-2));
}

#[test]
fn a_rank_that_is_lost_between_two_norms_ends_the_step() {
    let outcome = on_threads(2, |rank| {
        if rank.rank() == 1 {
            // One norm of the stem, and no more.
            rank.all_gather(vec![0.0; 8])?;
            return Err(cn_clip_train::TrainError::Config("out of memory".to_string()));
        }
        let options = StepOptions { sync_norm: true, ..Default::default() };
        let step = Step { options, communicator: rank, teacher: None, seed: 5 };
        step.run(&resnet(0), &[share(&cut(1)[0], 0, 2)], 0).map(|output| output.figures.loss)
    });
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("out of memory"), "{message}");
}
