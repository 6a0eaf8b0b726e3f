//! However a step is computed, its gradients are those of the one large batch.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{AdamWSettings, SaveOptimizer, parameters},
};
use cn_clip_train::{
    optimizer::{AdamW, DecayGroups, gradient_norm},
    step::{MicroBatch, Step, StepOptions, StepOutput, Training},
};

const PAIRS: usize = 16;
/// A ResNet sees 2 x 2 cells at its end: with one cell its attention pool has next to no gradient.
const RESOLUTION: usize = 64;
const TOKENS: usize = 12;

fn model(layers: serde_json::Value) -> Clip {
    let resnet = layers.is_array();
    let config: ClipConfig = serde_json::from_value(serde_json::json!({
        "embed_dim": 16,
        "image_resolution": RESOLUTION,
        "vision_layers": layers,
        "vision_width": if resnet { 8 } else { 32 },
        "vision_head_width": 16,
        "vision_patch_size": if resnet { None } else { Some(16) },
        "vocab_size": 200,
        "text_attention_probs_dropout_prob": 0.2,
        "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.2,
        "text_hidden_size": 16,
        "text_initializer_range": 0.02,
        "text_intermediate_size": 32,
        "text_max_position_embeddings": 16,
        "text_num_attention_heads": 2,
        "text_num_hidden_layers": 3,
        "text_type_vocab_size": 2,
    }))
    .unwrap();
    Clip::init(&config, &Device::default().autodiff(), 3)
}

fn pairs(from: usize, to: usize) -> MicroBatch {
    let noise = |index: usize, kind: u32| {
        let mut state = (index as u32).wrapping_mul(2_654_435_761) ^ kind;
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state ^= state >> 15;
        }
        state >> 8
    };
    let size = 3 * RESOLUTION * RESOLUTION;
    MicroBatch {
        pixels: (from * size..to * size)
            .map(|index| noise(index, 1) as f32 / (1 << 23) as f32 - 1.0)
            .collect(),
        tokens: (from * TOKENS..to * TOKENS)
            .map(|index| match (index % TOKENS, index / TOKENS) {
                // Texts of different lengths.
                (position, text) if position > 3 + text % 8 => 0,
                _ => 1 + (noise(index, 2) % 199) as i32,
            })
            .collect(),
        size: to - from,
        resolution: RESOLUTION,
        context_length: TOKENS,
    }
}

fn cut(parts: usize) -> Vec<MicroBatch> {
    let size = PAIRS / parts;
    (0..parts).map(|part| pairs(part * size, (part + 1) * size)).collect()
}

fn gradients(model: &Clip, output: &StepOutput) -> HashMap<String, Vec<f32>> {
    struct Reader<'a>(&'a GradientsParams, HashMap<burn::module::ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.get::<D>(param.id) {
                self.1.insert(param.id, gradient.into_data().try_into_vec().unwrap());
            }
        }
    }
    let mut reader = Reader(&output.gradients, HashMap::new());
    model.visit(&mut reader);
    let named = |spec: &cn_clip_model::checkpoint::ParamSpec| {
        Some((spec.key.clone(), reader.1.remove(&spec.id)?))
    };
    parameters(model).iter().filter_map(named).collect()
}

/// Largest relative difference (Euclidean norms) of any parameter. Where the gradient is zero but
/// for rounding, the largest norm of all parameters is the measure.
fn worst(ours: &HashMap<String, Vec<f32>>, expected: &HashMap<String, Vec<f32>>) -> f64 {
    assert_eq!(ours.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    };
    let norms = expected.iter().map(|(key, values)| (key, norm(&mut values.iter().copied())));
    let norms: HashMap<_, _> = norms.collect();
    let all = norms.values().copied().fold(0.0, f64::max);
    let error = |(key, values): (&String, &Vec<f32>)| {
        let ours = &ours[key];
        assert_eq!(ours.len(), values.len());
        assert!(ours.iter().all(|value| value.is_finite()), "{key}");
        norm(&mut ours.iter().zip(values).map(|(a, b)| a - b)) / norms[key].max(1e-4 * all)
    };
    expected.iter().map(error).fold(0.0, f64::max)
}

fn run(model: &Clip, parts: usize, options: StepOptions) -> StepOutput {
    Step::local(options, 5).run(model, &cut(parts), 9).unwrap()
}

#[test]
fn micro_batches_and_checkpointing_do_not_change_the_gradient() {
    let model = model(3.into());
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
            assert!((output.loss - expected.loss).abs() < 1e-6 * expected.loss);
            assert_eq!(output.image_accuracy, expected.image_accuracy);
            assert_eq!(output.text_accuracy, expected.text_accuracy);
        }
    }
}

#[test]
fn a_resnet_normalises_each_micro_batch_and_checkpointing_changes_nothing() {
    let config = serde_json::json!([1, 2, 1, 1]);
    for parts in [1, 4] {
        let plain = model(config.clone());
        let expected = run(&plain, parts, StepOptions::default());
        let checkpointed = model(config.clone());
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

fn running_statistics(model: &Clip) -> Vec<f32> {
    struct Reader(Vec<(burn::module::ParamId, Vec<f32>)>);
    impl ModuleVisitor for Reader {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push((param.id, param.val().into_data().try_into_vec().unwrap()));
        }
    }
    let mut reader = Reader(Vec::new());
    model.visit(&mut reader);
    let buffers: Vec<_> =
        parameters(model).into_iter().filter(|spec| spec.buffer).map(|spec| spec.id).collect();
    assert!(!buffers.is_empty());
    let values = buffers.iter().filter_map(|id| {
        reader.0.iter().find(|(found, _)| found == id).map(|(_, values)| values.clone())
    });
    values.flatten().collect()
}

#[test]
fn a_frozen_image_tower_is_the_same_with_checkpointing() {
    let model = model(2.into());
    let options = StepOptions { vision: Training::Frozen, ..Default::default() };
    let expected = gradients(&model, &run(&model, 1, options));
    assert!(expected.keys().all(|key| !key.starts_with("visual.")));
    let checkpointed = StepOptions { checkpointing: true, ..options };
    let error = worst(&gradients(&model, &run(&model, 2, checkpointed)), &expected);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_frozen_text_tower_has_no_gradient_and_leaves_the_others_as_they_are() {
    let model = model(2.into());
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
    let model = model(1.into());
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
