//! A small model of random weights with 16 pairs, and its gradients by official key.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{ParamSpec, parameters},
};
use cn_clip_train::step::{MicroBatch, Step, StepOptions, StepOutput};

const PAIRS: usize = 16;
/// A ResNet sees 2 x 2 cells at its end: with one cell its attention pool has next to no gradient.
const RESOLUTION: usize = 64;
const TOKENS: usize = 12;

/// Three text layers; image blocks, or stages of a ResNet, as given.
pub fn model(layers: serde_json::Value, dropout: f64) -> Clip {
    model_of(layers, dropout, 3)
}

/// The same with a seed of its initial weights.
pub fn model_of(layers: serde_json::Value, dropout: f64, seed: u64) -> Clip {
    let resnet = layers.is_array();
    let config: ClipConfig = serde_json::from_value(serde_json::json!({
        "embed_dim": 16,
        "image_resolution": RESOLUTION,
        "vision_layers": layers,
        "vision_width": if resnet { 8 } else { 32 },
        "vision_head_width": 16,
        "vision_patch_size": if resnet { None } else { Some(16) },
        "vocab_size": 200,
        "text_attention_probs_dropout_prob": dropout,
        "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": dropout,
        "text_hidden_size": 16,
        "text_initializer_range": 0.02,
        "text_intermediate_size": 32,
        "text_max_position_embeddings": 16,
        "text_num_attention_heads": 2,
        "text_num_hidden_layers": 3,
        "text_type_vocab_size": 2,
    }))
    .unwrap();
    Clip::init(&config, &Device::default().autodiff(), seed)
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

pub fn cut(parts: usize) -> Vec<MicroBatch> {
    let size = PAIRS / parts;
    (0..parts).map(|part| pairs(part * size, (part + 1) * size)).collect()
}

pub fn gradients(model: &Clip, output: &StepOutput) -> HashMap<String, Vec<f32>> {
    struct Reader<'a>(&'a GradientsParams, HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.get::<D>(param.id) {
                self.1.insert(param.id, gradient.into_data().try_into_vec().unwrap());
            }
        }
    }
    let mut reader = Reader(&output.gradients, HashMap::new());
    model.visit(&mut reader);
    let named = |spec: &ParamSpec| Some((spec.key.clone(), reader.1.remove(&spec.id)?));
    parameters(model).iter().filter_map(named).collect()
}

/// Largest relative difference (Euclidean norms) of any parameter. Where the gradient is zero but
/// for rounding, the largest norm of all parameters is the measure.
pub fn worst(ours: &HashMap<String, Vec<f32>>, expected: &HashMap<String, Vec<f32>>) -> f64 {
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

pub fn run(model: &Clip, parts: usize, options: StepOptions) -> StepOutput {
    Step::local(options, 5).run(model, &cut(parts), 9).unwrap()
}

/// Parameters by official key.
pub fn values(model: &Clip) -> HashMap<String, Vec<f32>> {
    struct Reader(HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, param.val().into_data().try_into_vec().unwrap());
        }
    }
    let mut reader = Reader(HashMap::new());
    model.visit(&mut reader);
    let named = |spec: &ParamSpec| Some((spec.key.clone(), reader.0.remove(&spec.id)?));
    parameters(model).iter().filter(|spec| !spec.buffer).filter_map(named).collect()
}

/// Running means and variances of all batch norms.
pub fn running_statistics(model: &Clip) -> Vec<f32> {
    struct Reader(Vec<(ParamId, Vec<f32>)>);
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
