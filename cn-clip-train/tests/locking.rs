//! What is trained of a tower, at which rate, and what decays.

#![allow(clippy::unwrap_used)]

#[path = "support/steps.rs"]
mod steps;

use std::collections::BTreeSet;

use cn_clip_model::{
    Clip, Precision,
    checkpoint::{AdamWSettings, ParamSpec, SaveOptimizer, parameters},
};
use cn_clip_train::{
    optimizer::{AdamW, DecayGroups},
    step::{StepOptions, Training},
};
use steps::{gradients, model, run, values, worst};

const SETTINGS: AdamWSettings = AdamWSettings {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.98,
    epsilon: 1e-6,
    weight_decay: 0.0,
};

/// The image tower's last block and the text tower's last two are trained.
const PARTIAL: StepOptions = StepOptions {
    vision: Training::Last(1),
    text: Training::Last(2),
    mask_ratio: 0.0,
    checkpointing: false,
    precision: Precision::Fp32,
    loss_scale: None,
    concurrent_towers: false,
    sync_norm: false,
};

/// Keys of the parameters that a step gives a gradient, without the parts below a block.
fn trained(model: &Clip, options: StepOptions) -> BTreeSet<String> {
    let found = gradients(model, &run(model, 1, options));
    let place = |key: &String| {
        let parts: Vec<&str> = key.split('.').collect();
        match parts[..] {
            ["visual", "transformer", "resblocks", block, ..] => format!("image {block}"),
            ["visual", stage, ..] if stage.starts_with("layer") => format!("image {stage}"),
            ["visual", part, ..] => format!("image {part}"),
            ["bert", "encoder", "layer", block, ..] => format!("text {block}"),
            ["bert", part, ..] => format!("text {part}"),
            _ => key.clone(),
        }
    };
    found.keys().map(place).collect()
}

#[test]
fn unlocked_blocks_are_trained_with_what_follows_them_and_nothing_else() {
    let text = ["logit_scale", "text 1", "text 2", "text_projection"];
    for (layers, image) in [
        (3.into(), &["image 2", "image ln_post", "image proj"][..]),
        (serde_json::json!([1, 2, 1, 1]), &["image attnpool", "image layer4"]),
    ] {
        let model = model(layers, 0.2);
        let expected: BTreeSet<String> =
            image.iter().chain(&text).map(|place| place.to_string()).collect();
        assert_eq!(trained(&model, PARTIAL), expected);
    }
    // More blocks than there are: all of them, but not what is before.
    let model = model(3.into(), 0.2);
    let all = StepOptions { vision: Training::Last(9), text: Training::Frozen, ..PARTIAL };
    let all: Vec<String> = trained(&model, all).into_iter().collect();
    assert_eq!(
        all,
        ["image 0", "image 1", "image 2", "image ln_post", "image proj", "logit_scale"]
    );
}

#[test]
fn gradients_of_unlocked_blocks_are_those_of_the_whole_model() {
    let model = model(3.into(), 0.0);
    let whole = gradients(&model, &run(&model, 1, StepOptions::default()));
    let partial = gradients(&model, &run(&model, 1, PARTIAL));
    let same = whole.into_iter().filter(|(key, _)| partial.contains_key(key)).collect();
    let error = worst(&partial, &same);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_partly_locked_batch_may_be_cut_and_checkpointed() {
    // Dropout of the trained blocks alone, by the same masks.
    let model = model(3.into(), 0.2);
    let options = StepOptions { mask_ratio: 0.5, ..PARTIAL };
    let expected = gradients(&model, &run(&model, 1, options));
    for (parts, checkpointing) in [(4, false), (16, false), (1, true), (4, true)] {
        let output = run(&model, parts, StepOptions { checkpointing, ..options });
        let error = worst(&gradients(&model, &output), &expected);
        assert!(error < 1e-5, "{parts} parts, checkpointing {checkpointing}: {error:e}");
    }
}

#[test]
fn locked_parameters_stay_and_take_no_memory_of_the_optimizer() {
    let model = model(3.into(), 0.2);
    let before = values(&model);
    let output = run(&model, 1, PARTIAL);
    let trained = gradients(&model, &output).len();
    let mut optimizer = AdamW::new(&model, SETTINGS, DecayGroups::Correct, true);
    let specs = parameters(&model);
    let after = values(&optimizer.step(model, output.gradients, 1e-3, 1.0));
    // The gradient of key biases is zero but for rounding, and so may be their step.
    let sure = |spec: &&ParamSpec| !spec.buffer && !spec.key.ends_with("self.key.bias");
    for spec in specs.iter().filter(sure) {
        let moved = before[&spec.key] != after[&spec.key];
        assert_eq!(moved, optimizer.contains(spec.id), "{}", spec.key);
    }
    let held = specs.iter().filter(|spec| optimizer.contains(spec.id)).count();
    assert_eq!(held, trained);
}

#[test]
fn lower_layers_move_by_lower_rates() {
    let steps = |decay: f64| {
        let model = model(3.into(), 0.0);
        let before = values(&model);
        let gradients = run(&model, 1, StepOptions::default()).gradients;
        let mut optimizer = AdamW::new(&model, SETTINGS, DecayGroups::Correct, true)
            .with_layer_decay(&model, decay);
        let after = values(&optimizer.step(model, gradients, 1e-3, 1.0));
        let step = |key: &str| -> f64 {
            let moved = before[key].iter().zip(&after[key]).map(|(a, b)| f64::from(a - b).abs());
            moved.sum()
        };
        [
            "logit_scale",
            "visual.proj",
            "visual.transformer.resblocks.2.mlp.c_fc.weight",
            "visual.transformer.resblocks.0.mlp.c_fc.weight",
            "visual.conv1.weight",
            "text_projection",
            "bert.encoder.layer.1.output.dense.weight",
            "bert.embeddings.position_embeddings.weight",
        ]
        .map(step)
    };
    // Of four levels below the output: half a rate for each.
    let expected = [1.0, 1.0, 0.5, 0.125, 0.0625, 1.0, 0.25, 0.0625];
    for ((slow, fast), factor) in steps(0.5).iter().zip(steps(1.0)).zip(expected) {
        assert!((slow / fast - factor).abs() < 1e-3 * factor, "{slow} {fast} {factor}");
    }
}

#[test]
fn norms_biases_positions_and_the_scale_do_not_decay() {
    for layers in [2.into(), serde_json::json!([1, 1, 1, 1])] {
        for spec in parameters(&model(layers, 0.0)).iter().filter(|spec| !spec.buffer) {
            let key = &spec.key;
            let spared = key.ends_with("bias")
                || ["ln_", "LayerNorm", "bn", "downsample.1"].iter().any(|norm| key.contains(norm))
                || key.contains("position")
                || key.contains("token_type")
                || ["visual.class_embedding", "logit_scale"].contains(&key.as_str());
            assert_eq!(DecayGroups::Correct.decays(spec), !spared, "{key}");
        }
    }
}
