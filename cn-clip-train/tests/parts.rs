//! Gradients that are handed on in parts, as blocks have them, make the step of the whole.

#![allow(clippy::unwrap_used)]

#[path = "support/steps.rs"]
mod steps;

use std::{collections::HashMap, sync::Mutex};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::Tensor,
};
use cn_clip_model::{Clip, Precision, checkpoint::AdamWSettings};
use cn_clip_train::{
    optimizer::{AdamW, DecayGroups, gradient_norm},
    step::{MicroBatch, Step, StepOptions, Training},
};
use steps::{cut, model, values};

const SETTINGS: AdamWSettings =
    AdamWSettings { learning_rate: 0.0, beta1: 0.9, beta2: 0.98, epsilon: 1e-6, weight_decay: 0.1 };
const RATES: [f64; 3] = [1e-3, 2e-3, 5e-4];

fn variants() -> Vec<StepOptions> {
    let plain = StepOptions::default();
    vec![
        plain,
        StepOptions { checkpointing: true, ..plain },
        StepOptions { mask_ratio: 0.5, concurrent_towers: true, ..plain },
        StepOptions { precision: Precision::Bf16, ..plain },
        StepOptions { vision: Training::Frozen, ..plain },
        StepOptions { text: Training::Last(1), concurrent_towers: true, ..plain },
        StepOptions { vision: Training::Last(1), checkpointing: true, ..plain },
    ]
}

/// Losses and norms of steps, and parameters after them.
type Run = (Vec<f32>, Vec<f64>, HashMap<String, Vec<f32>>);

fn whole(mut model: Clip, batches: &[MicroBatch], options: StepOptions, host: bool) -> Run {
    let mut optimizer = AdamW::new(&model, SETTINGS, DecayGroups::Correct, host);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (index, rate) in RATES.into_iter().enumerate() {
        let output = Step::local(options, 5).run(&model, batches, index as u64).unwrap();
        losses.push(output.figures.loss);
        norms.push(gradient_norm(&model, &output.gradients));
        model = optimizer.step(model, output.gradients, rate, 1.0);
    }
    (losses, norms, values(&model))
}

fn parts(mut model: Clip, batches: &[MicroBatch], options: StepOptions, host: bool) -> Run {
    let mut optimizer = AdamW::new(&model, SETTINGS, DecayGroups::Correct, host);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for (index, rate) in RATES.into_iter().enumerate() {
        let absorb = |part| optimizer.absorb(&model, part, 1.0, true);
        let step = Step::local(options, 5);
        losses.push(step.run_into(&model, batches, index as u64, &absorb).unwrap().loss);
        norms.push(optimizer.norm(&model));
        model = optimizer.apply(model, rate);
    }
    (losses, norms, values(&model))
}

#[test]
fn a_step_of_parts_is_that_of_the_whole() {
    for layers in [3.into(), serde_json::json!([1, 2, 1, 1])] {
        for options in variants() {
            for (cuts, host) in [(1, true), (1, false), (4, true)] {
                let (one, other) = (model(layers.clone(), 0.2), model(layers.clone(), 0.2));
                let context = format!("{layers} {cuts} {host} {options:?}");
                let start = values(&one);
                let expected = whole(one, &cut(cuts), options, host);
                let found = parts(other, &cut(cuts), options, host);
                assert_eq!(found.0, expected.0, "{context}");
                for (found, expected) in found.1.iter().zip(&expected.1) {
                    assert!((found - expected).abs() < 1e-6 * expected, "{context}");
                }
                assert!(found.2 == expected.2, "{context}");
                assert!(found.2 != start, "{context}");
            }
        }
    }
}

/// Parameters that a part holds a gradient of.
fn held(model: &Clip, part: &GradientsParams) -> Vec<ParamId> {
    struct Reader<'a>(&'a GradientsParams, Vec<ParamId>);
    impl ModuleVisitor for Reader<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.extend(self.0.get::<D>(param.id).map(|_| param.id));
        }
    }
    let mut reader = Reader(part, Vec::new());
    model.visit(&mut reader);
    reader.1
}

#[test]
fn every_parameter_comes_once_and_a_block_at_a_time() {
    let model = model(3.into(), 0.0);
    for options in variants() {
        let seen = Mutex::new(Vec::new());
        let take = |part| seen.lock().unwrap().push(held(&model, &part));
        Step::local(options, 5).run_into(&model, &cut(1), 0, &take).unwrap();
        let seen = seen.into_inner().unwrap();
        let mut all = seen.concat();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{options:?}");
        let most = seen.iter().map(Vec::len).max().unwrap();
        // A layer of BERT has 16, and five parameters come before the first.
        assert!(most <= 16 && seen.len() > count / 16, "{options:?}: {most} of {count}");
    }
}
