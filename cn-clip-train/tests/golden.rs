//! Gradients and optimizer steps against the recordings of the Python program.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use cn_clip_model::{
    Clip, ClipConfig, Pass, SampleRng,
    checkpoint::{self, AdamWSettings, Checkpoint, ParamSpec, parameters},
};
use cn_clip_train::{
    contrastive_loss,
    distill::Teacher,
    optimizer::{AdamW, DecayGroups},
    schedule::{Decay, Schedule},
    step::{MicroBatch, Step, StepOptions, StepOutput, Training},
};
use golden::{Golden, fixture, has_zero_gradient, norm_error, relative_error};

const GRADIENT_TOLERANCE: f32 = 1e-3;

fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

/// The recorded configuration, dropout as given.
fn load(variant: &str, dropout: f64) -> Clip {
    let mut model = json(&format!("model/{variant}/config.json"))["model_config"].clone();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let mut config: ClipConfig = serde_json::from_value(model).unwrap();
    (config.text.hidden_dropout, config.text.attention_dropout) = (dropout, dropout);
    let file = fixture(&format!("model/{variant}/checkpoint_fp16.pt"));
    let model = Clip::init(&config, &Device::default().autodiff(), 0);
    checkpoint::load(model, &Checkpoint::open(file).unwrap()).unwrap()
}

fn batch(golden: &Golden, pixels: &str, tokens: &str) -> MicroBatch {
    let (pixels, tokens) = (golden.get(pixels), golden.get(tokens));
    MicroBatch {
        pixels: pixels.values.clone(),
        tokens: tokens.ints(),
        size: tokens.shape[0],
        resolution: pixels.shape[2],
        context_length: tokens.shape[1],
    }
}

fn recorded_batch(variant: &str) -> MicroBatch {
    let golden = Golden::open(&format!("model/{variant}/forward_eval.safetensors"));
    batch(&golden, "pixels", "tokens")
}

/// Values of a parameter, by its identity and shape.
type Read<'a> = dyn FnMut(ParamId, &[usize]) -> Option<Vec<f32>> + 'a;

/// Values by official key, in official layout.
fn official(model: &Clip, read: &mut Read<'_>) -> HashMap<String, Vec<f32>> {
    let value = |spec: &ParamSpec| {
        let values = read(spec.id, &spec.shape)?;
        let values = match (spec.layout, &spec.shape[..]) {
            (checkpoint::Layout::Transposed, &[rows, columns]) => {
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

fn gradients(model: &Clip, gradients: &GradientsParams) -> HashMap<String, Vec<f32>> {
    fn get<const D: usize>(gradients: &GradientsParams, id: ParamId) -> Option<Vec<f32>> {
        gradients.get::<D>(id).map(|tensor| tensor.into_data().try_into_vec().unwrap())
    }
    official(model, &mut |id, shape| match shape.len() {
        1 => get::<1>(gradients, id),
        2 => get::<2>(gradients, id),
        _ => get::<4>(gradients, id),
    })
}

fn values(model: &Clip) -> HashMap<String, Vec<f32>> {
    struct Reader(HashMap<ParamId, Vec<f32>>);
    impl ModuleVisitor for Reader {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(param.id, param.val().into_data().try_into_vec().unwrap());
        }
    }
    let mut reader = Reader(HashMap::new());
    model.visit(&mut reader);
    official(model, &mut |id, _| reader.0.remove(&id))
}

fn check_gradients(golden: &Golden, prefix: &str, got: &HashMap<String, Vec<f32>>) {
    let names: Vec<&String> = golden.tensors.keys().filter(|key| key.starts_with(prefix)).collect();
    assert!(!names.is_empty());
    for name in names {
        let key = name.strip_prefix("grad.").unwrap().split('[').next().unwrap();
        let values = got.get(key).unwrap_or_else(|| panic!("no gradient for {key}"));
        if has_zero_gradient(key) {
            assert!(values.iter().all(|value| value.abs() < 1e-6), "{key}");
            continue;
        }
        golden.check(&format!("grad.{key}"), values, GRADIENT_TOLERANCE);
    }
}

fn run(model: &Clip, batches: &[MicroBatch], options: StepOptions) -> StepOutput {
    Step::local(options, 1).run(model, batches, 0).unwrap()
}

fn check_step(variant: &str) {
    let golden = Golden::open(&format!("model/{variant}/grads_train.safetensors"));
    let model = load(variant, 0.0);
    let output = run(&model, &[recorded_batch(variant)], StepOptions::default());
    golden.check("loss", &[output.loss], 1e-4);
    golden.check("i2t_acc", &[output.image_accuracy], 1e-4);
    golden.check("t2i_acc", &[output.text_accuracy], 1e-4);
    check_gradients(&golden, "grad.", &gradients(&model, &output.gradients));
    if variant == "rn_tiny" {
        let after = values(&model);
        for name in golden.tensors.keys() {
            if let Some(key) = name.strip_prefix("buffer_after.") {
                golden.check(name, &after[key], 1e-4);
            }
        }
    }
}

#[test]
fn vit_gradients() {
    check_step("vit_tiny");
}

#[test]
fn resnet_gradients_and_running_statistics() {
    check_step("rn_tiny");
}

#[test]
fn the_autodiff_loss_has_the_same_gradients() {
    for (variant, file) in [("vit_tiny", "grads_train"), ("rn_tiny", "grads_eval")] {
        let golden = Golden::open(&format!("model/{variant}/{file}.safetensors"));
        let model = load(variant, 0.0);
        let batch = recorded_batch(variant);
        let device = model.device();
        let image = model.encode_image(batch.pixels(&device), None, Pass::Eval);
        let text = model.encode_text(batch.tokens(&device), Pass::Eval);
        let loss = contrastive_loss(image, text, model.logit_scale.val());
        let found = GradientsParams::from_grads(loss.backward(), &model);
        golden.check("loss", &loss.inner().into_data().try_into_vec::<f32>().unwrap(), 1e-4);
        check_gradients(&golden, "grad.", &gradients(&model, &found));
    }
}

#[test]
fn masked_patches_give_the_recorded_gradients() {
    let golden = Golden::open("model/vit_tiny/flip_mask05.safetensors");
    let model = load("vit_tiny", 0.0);
    let batch = recorded_batch("vit_tiny");
    let device = model.device();
    let recorded = golden.get("ids_keep");
    let keep: Vec<i32> = recorded.ints().iter().map(|token| token - 1).collect();
    let keep = Tensor::from_data(TensorData::new(keep, recorded.shape.clone()), &device);
    let image = model.encode_image(batch.pixels(&device), Some(keep), Pass::Eval);
    let text = model.encode_text(batch.tokens(&device), Pass::Eval);
    let loss = contrastive_loss(image, text, model.logit_scale.val());
    let found = GradientsParams::from_grads(loss.backward(), &model);
    golden.check("loss", &loss.inner().into_data().try_into_vec::<f32>().unwrap(), 1e-4);
    check_gradients(&golden, "grad.visual", &gradients(&model, &found));
}

fn check_adamw(variant: &str, host: bool) {
    let golden = Golden::open(&format!("model/{variant}/adamw_3_steps.safetensors"));
    let recorded = json(&format!("model/{variant}/adamw_steps.json"));
    let settings = json(&format!("model/{variant}/config.json"))["optimizer"].clone();
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
    let mut model = load(variant, 0.0);
    for spec in parameters(&model).iter().filter(|spec| !spec.buffer) {
        let decays = recorded["groups"][&spec.key] == "decay";
        assert_eq!(DecayGroups::Reference.decays(spec), decays, "{}", spec.key);
    }
    let mut optimizer = AdamW::new(&model, adamw, DecayGroups::Reference, host);
    for (index, batch) in [&a, &b, &a, &b, &a].into_iter().enumerate() {
        let expected = &recorded["steps"][index];
        let rate = schedule.rate(index as u64);
        assert!((rate - expected["lr"].as_f64().unwrap()).abs() < 1e-12);
        let output = run(&model, std::slice::from_ref(batch), StepOptions::default());
        let loss = expected["loss"].as_f64().unwrap() as f32;
        assert!((output.loss - loss).abs() < 1e-4 * loss, "step {index}: {} {loss}", output.loss);
        model = optimizer.step(model, output.gradients, rate, 1.0);
        if index == 2 {
            let words = "bert.embeddings.word_embeddings.weight";
            golden.check(&format!("param_after_3.{words}"), &values(&model)[words], 1e-4);
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
        let error = norm_error(&got, &expected);
        assert!(error <= 1e-4, "{name}: {error:e}");
    }
}

#[test]
fn recorded_adamw_steps_of_the_vit() {
    check_adamw("vit_tiny", true);
    check_adamw("vit_tiny", false);
}

#[test]
fn recorded_adamw_steps_of_the_resnet() {
    check_adamw("rn_tiny", true);
}

#[test]
fn a_batch_may_be_cut_into_micro_batches() {
    let model = load("vit_tiny", 0.1);
    let whole = recorded_batch("vit_tiny");
    let cut = |from: usize, to: usize| MicroBatch {
        pixels: whole.pixels[from * 3 * 32 * 32..to * 3 * 32 * 32].to_vec(),
        tokens: whole.tokens[from * 52..to * 52].to_vec(),
        size: to - from,
        ..whole.clone()
    };
    let options = StepOptions { mask_ratio: 0.5, ..Default::default() };
    let expected = run(&model, std::slice::from_ref(&whole), options);
    let expected_gradients = gradients(&model, &expected.gradients);
    for cuts in [vec![0, 2, 5], vec![0, 1, 2, 3, 4, 5]] {
        let parts: Vec<MicroBatch> = cuts.windows(2).map(|c| cut(c[0], c[1])).collect();
        let output = run(&model, &parts, options);
        assert!((output.loss - expected.loss).abs() < 1e-6 * expected.loss);
        for (key, values) in gradients(&model, &output.gradients) {
            let error = relative_error(&values, &expected_gradients[&key]);
            assert!(error < 1e-5 || has_zero_gradient(&key), "{key}: {error}");
        }
    }
}

#[test]
fn a_frozen_image_tower_gets_no_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let golden = Golden::open(&format!("model/{variant}/grads_train.safetensors"));
        let model = load(variant, 0.0);
        let before = values(&model);
        let options = StepOptions { vision: Training::Frozen, ..Default::default() };
        let output = run(&model, &[recorded_batch(variant)], options);
        let found = gradients(&model, &output.gradients);
        assert!(found.keys().all(|key| !key.starts_with("visual.")));
        if variant == "vit_tiny" {
            check_gradients(&golden, "grad.bert", &found);
        }
        let after = values(&model);
        assert!(before.iter().all(|(key, value)| after[key] == *value), "batch norm stays");
    }
}

#[test]
fn towers_at_the_same_time_give_the_same_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let (model, batch) = (load(variant, 0.1), [recorded_batch(variant)]);
        let values = |concurrent_towers| {
            let options = StepOptions { concurrent_towers, ..Default::default() };
            let output = run(&model, &batch, options);
            (output.loss, gradients(&model, &output.gradients))
        };
        assert_eq!(values(true), values(false));
    }
}

#[test]
fn masks_repeat_with_the_seed() {
    let model = load("vit_tiny", 0.3);
    let batch = [recorded_batch("vit_tiny")];
    let loss =
        |seed, at| Step::local(StepOptions::default(), seed).run(&model, &batch, at).unwrap().loss;
    assert_eq!(loss(1, 5), loss(1, 5));
    assert_ne!(loss(1, 5), loss(1, 6));
    assert_ne!(loss(1, 5), loss(2, 5));
    let rng = SampleRng::for_step(1, 5, 0..3);
    assert_eq!(rng.len(), 3);
}

/// Features that were recorded of a teacher.
struct Recording {
    features: Vec<f32>,
    width: usize,
    weight: f64,
    /// Rows handed out.
    given: std::cell::Cell<usize>,
}

impl Teacher for Recording {
    fn features(&self, batch: &MicroBatch) -> Tensor<2> {
        let first = self.given.replace(self.given.get() + batch.size) * self.width;
        let rows = self.features[first..first + batch.size * self.width].to_vec();
        let data = TensorData::new(rows, [batch.size, self.width]);
        Tensor::from_data(data, &Device::default())
    }

    fn weight(&self) -> f64 {
        self.weight
    }
}

#[test]
fn distillation_gives_the_recorded_losses_and_gradients() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let golden = Golden::open(&format!("model/{variant}/distillation.safetensors"));
        let features = golden.get("teacher_features");
        let weight = f64::from(golden.get("kd_loss_weight").values[0]);
        let model = load(variant, 0.0);
        let whole = recorded_batch(variant);
        let size = whole.pixels.len() / whole.size;
        let cut = |from: usize, to: usize| MicroBatch {
            pixels: whole.pixels[from * size..to * size].to_vec(),
            tokens: whole.tokens[from * 52..to * 52].to_vec(),
            size: to - from,
            ..whole.clone()
        };
        // Batch norm sees a difference between a batch and its parts.
        let cuts =
            if variant == "vit_tiny" { vec![vec![0, 5], vec![0, 2, 5]] } else { vec![vec![0, 5]] };
        for cuts in cuts {
            let teacher = Recording {
                features: features.values.clone(),
                width: features.shape[1],
                weight,
                given: 0.into(),
            };
            let parts: Vec<MicroBatch> = cuts.windows(2).map(|c| cut(c[0], c[1])).collect();
            let local = Step::local(StepOptions::default(), 1);
            let output = Step { teacher: Some(&teacher), ..local }.run(&model, &parts, 0).unwrap();
            let weighted = output.distillation.unwrap();
            golden.check("kd_loss", &[weighted / weight as f32], 1e-4);
            golden.check("total_loss", &[output.loss], 1e-4);
            check_gradients(&golden, "grad.", &gradients(&model, &output.gradients));
        }
    }
}
