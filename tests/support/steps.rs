//! Losses, gradients and training steps of the recorded tiny models on a device, beside the
//! recordings.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use cn_clip_model::{
    Clip, Pass, Precision,
    checkpoint::{AdamWSettings, Layout, ParamSpec, parameters},
};
use cn_clip_train::{
    contrastive_loss,
    loss::Gathered,
    optimizer::{AdamW, DecayGroups},
    schedule::{Decay, Schedule},
    step::{MicroBatch, Step, StepOptions, StepOutput},
};

use super::{
    golden::{Errors, Golden, has_zero_gradient, norm_error, without_gradient},
    towers::{config_with, floats, input_on, json, load_on, load_with, recorded_patches},
};

/// Factor of gradients inside the towers in fp16.
pub const LOSS_SCALE: f64 = 1024.0;

pub fn recorded_batch(variant: &str) -> MicroBatch {
    let golden = Golden::open(&format!("model/{variant}/forward_eval.safetensors"));
    let (pixels, tokens) = (golden.get("pixels"), golden.get("tokens"));
    MicroBatch {
        pixels: pixels.values.clone(),
        tokens: tokens.ints(),
        size: tokens.shape[0],
        resolution: pixels.shape[2],
        context_length: tokens.shape[1],
    }
}

/// Values of a parameter, by its identity and shape.
type Read<'a> = dyn FnMut(ParamId, &[usize]) -> Option<Vec<f32>> + 'a;

/// Values by official key, in official layout.
fn official(model: &Clip, read: &mut Read<'_>) -> HashMap<String, Vec<f32>> {
    let value = |spec: &ParamSpec| {
        let values = read(spec.id, &spec.shape)?;
        let values = match (spec.layout, &spec.shape[..]) {
            (Layout::Transposed, &[rows, columns]) => {
                let mut out = Vec::with_capacity(values.len());
                (0..columns)
                    .for_each(|c| (0..rows).for_each(|r| out.push(values[r * columns + c])));
                out
            }
            _ => values,
        };
        Some((spec.key.clone(), values))
    };
    parameters(model).iter().filter_map(value).collect()
}

/// Gradients by official key.
pub fn gradients(model: &Clip, gradients: &GradientsParams) -> HashMap<String, Vec<f32>> {
    fn get<const D: usize>(gradients: &GradientsParams, id: ParamId) -> Option<Vec<f32>> {
        gradients.get::<D>(id).map(floats)
    }
    official(model, &mut |id, shape| match shape.len() {
        1 => get::<1>(gradients, id),
        2 => get::<2>(gradients, id),
        _ => get::<4>(gradients, id),
    })
}

/// Parameters and running averages by official key.
pub fn values(model: &Clip) -> HashMap<String, Vec<f32>> {
    struct Reader(HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, floats(param.val()));
        }
    }
    let mut reader = Reader(HashMap::new());
    model.visit(&mut reader);
    official(model, &mut |id, _| reader.0.remove(&id))
}

/// Gradients beside those recorded under names that start with `prefix`. Of those that are zero
/// but for rounding the largest value is the error, a thousandfold.
pub fn compare_gradients(golden: &Golden, prefix: &str, got: &HashMap<String, Vec<f32>>) -> Errors {
    let names: Vec<&String> = golden.tensors.keys().filter(|key| key.starts_with(prefix)).collect();
    assert!(!names.is_empty());
    let mut errors = Errors::default();
    for name in names {
        let key = name.strip_prefix("grad.").unwrap().split('[').next().unwrap();
        let values = got.get(key).unwrap_or_else(|| panic!("no gradient for {key}"));
        if has_zero_gradient(key) {
            let largest = values.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
            errors.found.push((name.clone(), 1e3 * largest));
            continue;
        }
        errors.add_recorded(golden, &format!("grad.{key}"), values);
    }
    errors
}

pub fn run_step(model: &Clip, batches: &[MicroBatch], options: StepOptions) -> StepOutput {
    Step::local(options, 1).run(model, batches, 0).unwrap()
}

/// What a step does in a precision.
pub fn options(precision: Precision) -> StepOptions {
    let loss_scale = (precision == Precision::Fp16).then_some(LOSS_SCALE);
    StepOptions { precision, loss_scale, ..StepOptions::default() }
}

/// Loss, gradients and running averages of one step.
pub fn step(variant: &str, device: &Device, options: StepOptions) -> Errors {
    let golden = Golden::open(&format!("model/{variant}/grads_train.safetensors"));
    let model = load_on(variant, &device.clone().autodiff());
    let output = run_step(&model, &[recorded_batch(variant)], options);
    let mut errors = compare_gradients(&golden, "grad.", &gradients(&model, &output.gradients));
    errors.add_recorded(&golden, "loss", &[output.figures.loss]);
    errors.add_recorded(&golden, "i2t_acc", &[output.figures.image_accuracy]);
    errors.add_recorded(&golden, "t2i_acc", &[output.figures.text_accuracy]);
    if variant == "rn_tiny" {
        let after = values(&model);
        for name in golden.tensors.keys() {
            if let Some(key) = name.strip_prefix("buffer_after.") {
                errors.add_recorded(&golden, name, &after[key]);
            }
        }
    }
    errors
}

/// The differentiable loss and its gradients; of the image tower alone on half of its patches.
pub fn autodiff_loss(variant: &str, device: &Device, precision: Precision, mask: bool) -> Errors {
    let (file, prefix) = match (variant, mask) {
        (_, true) => ("flip_mask05", "grad.visual"),
        ("rn_tiny", _) => ("grads_eval", "grad."),
        _ => ("grads_train", "grad."),
    };
    let golden = Golden::open(&format!("model/{variant}/{file}.safetensors"));
    let model = load_on(variant, &device.clone().autodiff());
    let copy = precision.copy(&model);
    let device = copy.device();
    let batch = recorded_batch(variant);
    let keep = mask.then(|| recorded_patches(&device));
    let image = copy.encode_image(batch.pixels(&device), keep, Pass::Eval);
    let text = copy.encode_text(batch.tokens(&device), Pass::Eval);
    let loss = contrastive_loss(image, text, copy.logit_scale.val());
    let scale = if precision == Precision::Fp16 { LOSS_SCALE } else { 1.0 };
    let found = GradientsParams::from_grads((loss.clone() * scale).backward(), &copy);
    let mut found = gradients(&copy, &found);
    found.values_mut().flatten().for_each(|value| *value /= scale as f32);
    let mut errors = compare_gradients(&golden, prefix, &found);
    errors.add_recorded(&golden, "loss", &floats(loss.inner()));
    errors
}

/// The loss of the recorded features by its closed form, walked in tiles of two columns, and its
/// gradient beside that of autodiff on the processor.
pub fn tiled_loss(device: &Device, reference: &Device) -> Errors {
    let golden = Golden::open("model/vit_tiny/forward_eval.safetensors");
    let scale = golden.scalar("logit_scale_exp");
    let features = |name: &str, device: &Device| input_on::<2>(&golden, name, device);
    let gathered = Gathered::local(
        features("image_features_norm", device),
        features("text_features_norm", device),
    );
    let local = gathered.statistics(scale, 2);
    let (images, texts) = (&local.image_rows, &local.text_rows);
    let gradient = gathered.gradient(&local, images, texts, scale, 2);
    let mut errors = Errors::default();
    let count = gathered.count as f32;
    errors.add_recorded(&golden, "loss", &[local.loss_sum() / 2.0 / count]);

    let reference = reference.clone().autodiff();
    let image = features("image_features_norm", &reference).require_grad();
    let text = features("text_features_norm", &reference).require_grad();
    let logits = image.clone().matmul(text.clone().transpose()) * scale;
    let diagonal = (image.clone() * text.clone()).sum() * scale;
    let rows = |logits: Tensor<2>| logits.exp().sum_dim(1).log().sum();
    let loss = rows(logits.clone()) + rows(logits.transpose()) - diagonal * 2.0;
    let grads = (loss / (2.0 * count)).backward();
    let of = |x: &Tensor<2>| floats(x.grad(&grads).unwrap());
    errors.add("gradient of the images", &floats(gradient.image), &of(&image));
    errors.add("gradient of the texts", &floats(gradient.text), &of(&text));
    errors
}

/// Parameters after five recorded steps of AdamW.
pub fn adamw(variant: &str, device: &Device, host: bool) -> Errors {
    let golden = Golden::open(&format!("model/{variant}/adamw_3_steps.safetensors"));
    let recorded = json(&format!("model/{variant}/adamw_steps.json"));
    let settings = json(&format!("model/{variant}/config.json"))["optimizer"].take();
    let number = |key: &str| settings[key].as_f64().unwrap();
    let schedule = Schedule {
        decay: Decay::Cosine,
        base: number("lr"),
        warmup: number("warmup") as u64,
        total: number("total") as u64,
    };
    let adamw = AdamWSettings {
        learning_rate: 0.0,
        beta1: number("b1"),
        beta2: number("b2"),
        epsilon: number("eps"),
        weight_decay: number("wd"),
    };
    let a = recorded_batch(variant);
    let pixels_b =
        golden.tensors.contains_key("pixels_b").then(|| golden.get("pixels_b").values.clone());
    let mut b = MicroBatch { tokens: golden.get("tokens_b").ints(), ..a.clone() };
    b.pixels = pixels_b.unwrap_or(b.pixels);
    let mut model = load_on(variant, &device.clone().autodiff());
    for spec in parameters(&model).iter().filter(|spec| !spec.buffer) {
        let decays = recorded["groups"][&spec.key] == "decay";
        assert_eq!(DecayGroups::Reference.decays(spec), decays, "{}", spec.key);
    }
    let mut errors = Errors::default();
    let mut optimizer = AdamW::new(&model, adamw, DecayGroups::Reference, host);
    for (index, batch) in [&a, &b, &a, &b, &a].into_iter().enumerate() {
        let expected = &recorded["steps"][index];
        let rate = schedule.rate(index as u64);
        assert!((rate - expected["lr"].as_f64().unwrap()).abs() < 1e-12);
        let output = run_step(&model, std::slice::from_ref(batch), StepOptions::default());
        let loss = expected["loss"].as_f64().unwrap() as f32;
        errors.add(&format!("loss of step {index}"), &[output.figures.loss], &[loss]);
        model = optimizer.step(model, output.gradients, rate, 1.0);
        if index == 2 {
            let words = "bert.embeddings.word_embeddings.weight";
            let name = format!("param_after_3.{words}");
            errors.add_recorded(&golden, &name, &values(&model)[words]);
        }
    }
    // But for the word embeddings, which were copied in time, the recorded tensors share memory
    // with the model they were taken from and so are those after all five steps.
    let after = values(&model);
    for name in golden.tensors.keys() {
        let found = name.strip_prefix("param_after_3.").or(name.strip_prefix("buffer_after_3."));
        let Some(key) = found.map(|key| key.split('[').next().unwrap()) else { continue };
        if key.contains("word_embeddings") {
            continue;
        }
        let prefix = &name[..name.find(key).unwrap()];
        let (got, expected) = golden.cut(&format!("{prefix}{key}"), &after[key]).unwrap();
        if has_zero_gradient(key) {
            // Rounding noise, which AdamW may scale up to whole steps in either direction.
            let far = 2.0 * (0..5).map(|step| schedule.rate(step)).sum::<f64>() as f32;
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < far), "{key}");
            continue;
        }
        let (got, expected) = match got.len() == after[key].len() {
            true => (moved_by_gradient(key, &got), moved_by_gradient(key, &expected)),
            false => (got, expected),
        };
        errors.found.push((name.clone(), norm_error(&got, &expected)));
    }
    errors
}

/// The values of a parameter but for those whose gradient is rounding noise, which AdamW moves by
/// whole steps in arbitrary directions.
fn moved_by_gradient(key: &str, values: &[f32]) -> Vec<f32> {
    let noise = without_gradient(key, values.len());
    let moved = values.iter().enumerate().filter(|(index, _)| !noise.contains(index));
    moved.map(|(_, value)| *value).collect()
}

/// Gradients of a step, and parameters after two, with everything at once: checkpointing, dropout,
/// FLIP and AdamW. Beside those without checkpointing in fp32 on `reference`.
pub fn whole_step(
    device: &Device,
    host: bool,
    options: StepOptions,
    reference: &Device,
) -> [Errors; 2] {
    let [gradients, parameters] =
        two_steps(device, host, StepOptions { checkpointing: true, ..options });
    let [expected_gradients, expected_parameters] =
        two_steps(reference, true, StepOptions::default());
    let mut errors = [Errors::default(), Errors::default()];
    let mut keys: Vec<&String> = expected_parameters.keys().collect();
    keys.sort();
    for key in keys {
        let got = moved_by_gradient(key, &parameters[key]);
        let expected = moved_by_gradient(key, &expected_parameters[key]);
        if expected.is_empty() {
            continue;
        }
        errors[0].add(key, &gradients[key], &expected_gradients[key]);
        errors[1].found.push((key.clone(), norm_error(&got, &expected)));
    }
    errors
}

/// Gradients of the first of two steps, and parameters after them.
fn two_steps(device: &Device, host: bool, options: StepOptions) -> [HashMap<String, Vec<f32>>; 2] {
    let config = config_with("vit_tiny", 0.1);
    let mut model = load_with(&config, "vit_tiny", &device.clone().autodiff());
    let settings = AdamWSettings {
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-6,
        weight_decay: 0.2,
    };
    let mut optimizer = AdamW::new(&model, settings, DecayGroups::default(), host);
    let batch = [recorded_batch("vit_tiny")];
    let mut first = None;
    for index in 0..2 {
        let step = Step::local(StepOptions { mask_ratio: 0.5, ..options }, 7);
        let output = step.run(&model, &batch, index).unwrap();
        first.get_or_insert_with(|| gradients(&model, &output.gradients));
        model = optimizer.step(model, output.gradients, 1e-4, 1.0);
    }
    [first.unwrap(), values(&model)]
}
