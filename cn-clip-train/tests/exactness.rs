//! However a step is computed, its gradients are those of the one large batch.

#![allow(clippy::unwrap_used)]

#[path = "support/steps.rs"]
mod steps;

use cn_clip_model::{
    Clip,
    checkpoint::{AdamWSettings, SaveOptimizer},
};
use cn_clip_train::{
    optimizer::{AdamW, DecayGroups, gradient_norm},
    step::{StepOptions, Training},
};
use steps::{gradients, model, run, running_statistics, worst};

#[test]
fn micro_batches_and_checkpointing_do_not_change_the_gradient() {
    let model = model(3.into(), 0.2);
    for mask_ratio in [0.0, 0.5] {
        let options = StepOptions { mask_ratio, ..Default::default() };
        let expected = run(&model, 1, options);
        let expected_gradients = gradients(&model, &expected);
        assert!(expected_gradients.len() > 50);
        for (parts, checkpointing) in
            [(2, false), (4, false), (16, false), (1, true), (2, true), (4, true), (16, true)]
        {
            let output = run(&model, parts, StepOptions { checkpointing, ..options });
            let error = worst(&gradients(&model, &output), &expected_gradients);
            assert!(error < 1e-5, "{parts} parts, checkpointing {checkpointing}: {error:e}");
            assert!(
                (output.figures.loss - expected.figures.loss).abs() < 1e-6 * expected.figures.loss
            );
            assert_eq!(output.figures.image_accuracy, expected.figures.image_accuracy);
            assert_eq!(output.figures.text_accuracy, expected.figures.text_accuracy);
        }
    }
}

#[test]
fn a_resnet_normalises_each_micro_batch_and_checkpointing_changes_nothing() {
    let config = serde_json::json!([1, 2, 1, 1]);
    for parts in [1, 4] {
        let plain = model(config.clone(), 0.2);
        let expected = run(&plain, parts, StepOptions::default());
        let checkpointed = model(config.clone(), 0.2);
        let options = StepOptions { checkpointing: true, ..Default::default() };
        let output = run(&checkpointed, parts, options);
        let error = worst(&gradients(&checkpointed, &output), &gradients(&plain, &expected));
        assert!(error < 1e-5, "{parts} parts: {error:e}");
        // The running averages have moved by every micro-batch once.
        let statistics = |model: &Clip| {
            let bytes = running_statistics(model);
            assert!(bytes.iter().any(|value| *value != 0.0 && *value != 1.0));
            bytes
        };
        assert_eq!(statistics(&checkpointed), statistics(&plain));
    }
}

#[test]
fn with_a_frozen_image_tower_a_resnet_may_be_cut_too() {
    // Its batch norms go by their running averages then.
    for layers in [2.into(), serde_json::json!([1, 2, 1, 1])] {
        let model = model(layers, 0.2);
        let options = StepOptions { vision: Training::Frozen, ..Default::default() };
        let expected = gradients(&model, &run(&model, 1, options));
        assert!(expected.keys().all(|key| !key.starts_with("visual.")));
        for (parts, checkpointing) in [(2, false), (4, false), (16, false), (1, true), (4, true)] {
            let output = run(&model, parts, StepOptions { checkpointing, ..options });
            let error = worst(&gradients(&model, &output), &expected);
            assert!(error < 1e-5, "{parts} parts, checkpointing {checkpointing}: {error:e}");
        }
    }
}

#[test]
fn a_frozen_text_tower_has_no_gradient_and_leaves_the_others_as_they_are() {
    let model = model(2.into(), 0.2);
    let frozen = StepOptions { text: Training::Frozen, ..Default::default() };
    let output = run(&model, 1, frozen);
    let found = gradients(&model, &output);
    assert!(found.keys().all(|key| !key.starts_with("bert.") && key != "text_projection"));
    assert!(found.contains_key("logit_scale") && found.contains_key("visual.proj"));
    // A frozen tower has no dropout, however the batch is cut.
    for (parts, checkpointing) in [(4, false), (1, true), (2, true)] {
        let again = run(&model, parts, StepOptions { checkpointing, ..frozen });
        let error = worst(&gradients(&model, &again), &found);
        assert!(error < 1e-5, "{parts} parts, checkpointing {checkpointing}: {error:e}");
    }
}

#[test]
fn the_norm_is_that_of_all_gradients_and_a_factor_scales_them() {
    let model = model(1.into(), 0.2);
    let output = run(&model, 1, StepOptions::default());
    let squares = |values: &Vec<f32>| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let expected = gradients(&model, &output).values().map(squares).sum::<f64>().sqrt();
    let norm = gradient_norm(&model, &output.gradients);
    assert!((norm - expected).abs() < 1e-5 * expected, "{norm} {expected}");

    let settings = AdamWSettings {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-6,
        weight_decay: 0.1,
    };
    // On either path the first moment is a tenth of the scaled gradient.
    let moments = |host: bool| {
        let mut optimizer = AdamW::new(&model, settings, DecayGroups::Correct, host);
        optimizer.step(model.clone(), run(&model, 1, StepOptions::default()).gradients, 1e-3, 0.25);
        optimizer.moments(model.logit_scale.id).unwrap().1[0]
    };
    let gradient = gradients(&model, &output)["logit_scale"][0];
    for host in [true, false] {
        assert!((moments(host) - 0.025 * gradient).abs() < 1e-6 * gradient.abs(), "host {host}");
    }
}
