//! AdamW with two parameter groups (arXiv 1711.05101; `torch.optim.AdamW`).

use std::collections::{HashMap, HashSet};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Tensor, TensorData},
};
use cn_clip_model::{
    Clip,
    checkpoint::{
        AdamWSettings, Checkpoint, ParamSpec, SaveOptimizer, parameters, reference_no_decay,
        reference_order, to_module_layout,
    },
};
use rayon::prelude::*;

use crate::{
    TrainError,
    depth::{rate_factors, trained},
    step::StepOptions,
};

/// Values one thread updates at a time.
const CHUNK: usize = 1 << 15;

/// Which parameters weight decay leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecayGroups {
    /// By the substrings `bn`, `ln`, `bias`, `logit_scale` of the name, as the Python program
    /// does: norms of BERT and of ResNet shortcuts, and position and class embeddings, decay.
    Reference,
    /// Norms, biases, class, position and token type embeddings and the logit scale do not decay.
    #[default]
    Correct,
}

impl DecayGroups {
    /// Whether a parameter of this official key and rank decays.
    pub fn decays(self, spec: &ParamSpec) -> bool {
        match self {
            Self::Reference => !reference_no_decay(&spec.key),
            Self::Correct => {
                let position = spec.key.contains("positional_embedding")
                    || spec.key.contains("position_embeddings")
                    || spec.key.contains("token_type_embeddings");
                spec.shape.len() > 1 && !position
            }
        }
    }
}

/// First and second moment of a parameter, flattened in the layout of the module.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One per parameter, and all of the same variant.
enum Moments {
    /// In ordinary memory, for devices that compute there.
    Host { first: Vec<f32>, second: Vec<f32> },
    /// On a device of its own memory.
    Device { first: Tensor<1>, second: Tensor<1> },
}

#[derive(Debug)]
struct State {
    steps: u64,
    moments: Moments,
}

/// AdamW over the trained parameters of a model.
#[derive(Debug)]
pub struct AdamW {
    /// Hyper-parameters; the learning rate is that of the last step.
    settings: AdamWSettings,
    decay: HashMap<ParamId, bool>,
    /// Factors of the learning rate; 1 where there is none.
    rates: HashMap<ParamId, f64>,
    states: HashMap<ParamId, State>,
    /// Whether tensors lie in ordinary memory and are updated in place there.
    host: bool,
}

impl AdamW {
    /// An optimizer without state. `host` tells that the device computes in ordinary memory.
    pub fn new(model: &Clip, settings: AdamWSettings, groups: DecayGroups, host: bool) -> Self {
        let decay = parameters(model).iter().map(|spec| (spec.id, groups.decays(spec))).collect();
        Self { settings, decay, rates: HashMap::new(), states: HashMap::new(), host }
    }

    /// Multiplies the learning rate by `decay` for every block between a parameter and the output
    /// of its tower; 1 changes nothing.
    pub fn with_layer_decay(mut self, model: &Clip, decay: f64) -> Self {
        if decay != 1.0 {
            self.rates = rate_factors(model, decay);
        }
        self
    }

    /// Applies one step to every parameter that has a gradient, multiplied by `factor`.
    pub fn step(
        &mut self,
        model: Clip,
        gradients: GradientsParams,
        rate: f64,
        factor: f64,
    ) -> Clip {
        self.settings.learning_rate = rate;
        model.map(&mut Updater { optimizer: self, gradients, factor })
    }

    /// Takes over the state of a training checkpoint, as far as it is of parameters that are
    /// trained by `options`.
    pub fn restore(
        &mut self,
        model: &Clip,
        checkpoint: &Checkpoint,
        options: &StepOptions,
    ) -> Result<(), TrainError> {
        let Some(saved) = &checkpoint.optimizer else {
            return Err(TrainError::Resume(format!(
                "{} holds no optimizer state: add --reset-optimizer",
                checkpoint.name
            )));
        };
        let count: usize = saved.group_sizes.iter().sum();
        let specs = parameters(model);
        let without = |frozen: &[&str]| {
            let keep = |spec: &&ParamSpec| {
                !spec.buffer && !frozen.iter().any(|prefix| spec.key.starts_with(prefix))
            };
            specs.iter().filter(keep).collect::<Vec<_>>()
        };
        // Frozen parameters have no index. What was frozen is not written down: count.
        let own = trained(model, options);
        let candidates = [
            own.iter().collect(),
            without(&[]),
            without(&["visual."]),
            without(&["bert.", "text_projection"]),
            without(&["bert."]),
        ];
        let mismatch = || {
            TrainError::Resume(format!(
                "the optimizer state of {} covers {count} parameters, which fits neither the whole \
                 model nor one with a frozen tower: add --reset-optimizer",
                checkpoint.name
            ))
        };
        let specs =
            candidates.into_iter().find(|specs| specs.len() == count).ok_or_else(mismatch)?;
        let by_key: HashMap<&str, &ParamSpec> =
            specs.iter().map(|spec| (spec.key.as_str(), *spec)).collect();
        let order = reference_order(specs.iter().map(|spec| spec.key.as_str()));
        let own: HashSet<ParamId> = own.iter().map(|spec| spec.id).collect();
        let mut states = HashMap::with_capacity(saved.moments.len());
        for (index, moments) in &saved.moments {
            let spec = order.get(*index).and_then(|key| by_key.get(key)).ok_or_else(mismatch)?;
            if moments.first.shape != spec.official_shape()
                || moments.second.shape != spec.official_shape()
            {
                return Err(mismatch());
            }
            if !own.contains(&spec.id) {
                continue;
            }
            let first = to_module_layout(spec, moments.first.read()?);
            let second = to_module_layout(spec, moments.second.read()?);
            let state =
                State { steps: moments.step as u64, moments: self.place(model, first, second) };
            states.insert(spec.id, state);
        }
        self.states = states;
        Ok(())
    }

    fn place(&self, model: &Clip, first: Vec<f32>, second: Vec<f32>) -> Moments {
        if self.host {
            return Moments::Host { first, second };
        }
        let device = model.device().inner();
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), &device)
        };
        Moments::Device { first: tensor(first), second: tensor(second) }
    }

    fn update<const D: usize>(
        &mut self,
        id: ParamId,
        value: Tensor<D>,
        gradient: Tensor<D>,
        factor: f64,
    ) -> Tensor<D> {
        let settings = self.settings;
        let (device, shape) = (value.device(), value.dims());
        let count = shape.iter().product();
        let host = self.host;
        let state = self.states.entry(id).or_insert_with(|| State {
            steps: 0,
            moments: match host {
                true => Moments::Host { first: vec![0.0; count], second: vec![0.0; count] },
                false => Moments::Device {
                    first: Tensor::zeros([count], &device),
                    second: Tensor::zeros([count], &device),
                },
            },
        });
        state.steps += 1;
        let decays = self.decay.get(&id).copied().unwrap_or(false);
        let decay = if decays { settings.weight_decay } else { 0.0 };
        let rate = settings.learning_rate * self.rates.get(&id).copied().unwrap_or(1.0);
        let bias = |beta: f64| 1.0 - beta.powf(state.steps as f64);
        let rule = Rule {
            keep: 1.0 - rate * decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            rate: rate / bias(settings.beta1),
            root: bias(settings.beta2).sqrt(),
            epsilon: settings.epsilon,
            factor,
        };
        match &mut state.moments {
            Moments::Host { first, second } => rule.on_host(value, gradient, first, second),
            Moments::Device { first, second } => rule.on_device(value, gradient, first, second),
        }
    }
}

/// Factors of one update, bias corrections included.
struct Rule {
    keep: f64,
    beta1: f64,
    beta2: f64,
    rate: f64,
    root: f64,
    epsilon: f64,
    /// Of the gradient.
    factor: f64,
}

impl Rule {
    /// One pass over memory, in place where the parameter is not shared.
    fn on_host<const D: usize>(
        &self,
        value: Tensor<D>,
        gradient: Tensor<D>,
        first: &mut [f32],
        second: &mut [f32],
    ) -> Tensor<D> {
        let device = value.device();
        let mut data = value.into_data();
        let gradient = gradient.into_data();
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let (fresh1, beta2) = ((1.0 - self.beta1) as f32, self.beta2 as f32);
        let (fresh2, root) = ((1.0 - self.beta2) as f32, self.root as f32);
        let (epsilon, factor) = (self.epsilon as f32, self.factor as f32);
        if let (Ok(values), Ok(gradient)) = (data.as_mut_slice::<f32>(), gradient.as_slice::<f32>())
        {
            let chunks = values
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)));
            chunks.for_each(|((values, gradient), (first, second))| {
                let items = values.iter_mut().zip(gradient).zip(first.iter_mut().zip(second));
                for ((value, gradient), (first, second)) in items {
                    let gradient = gradient * factor;
                    *first += (gradient - *first) * fresh1;
                    *second = *second * beta2 + gradient * gradient * fresh2;
                    *value = *value * keep - rate * (*first / (second.sqrt() / root + epsilon));
                }
            });
        }
        Tensor::from_data(data, &device)
    }

    fn on_device<const D: usize>(
        &self,
        value: Tensor<D>,
        gradient: Tensor<D>,
        first: &mut Tensor<1>,
        second: &mut Tensor<1>,
    ) -> Tensor<D> {
        let shape = value.dims();
        let gradient = gradient.reshape([first.dims()[0]]) * self.factor;
        *first = first.clone() * self.beta1 + gradient.clone() * (1.0 - self.beta1);
        *second = second.clone() * self.beta2 + gradient.square() * (1.0 - self.beta2);
        let denominator = second.clone().sqrt() / self.root + self.epsilon;
        let update = (first.clone() / denominator) * self.rate;
        value * self.keep - update.reshape(shape)
    }
}

/// Euclidean norm of the gradient of all parameters.
pub fn gradient_norm(model: &Clip, gradients: &GradientsParams) -> f64 {
    struct Norm<'a> {
        gradients: &'a GradientsParams,
        squares: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Norm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = self.gradients.get::<D>(param.id);
            self.squares.extend(gradient.map(|gradient| gradient.square().sum()));
        }
    }
    let mut norm = Norm { gradients, squares: Vec::new() };
    model.visit(&mut norm);
    match norm.squares.is_empty() {
        true => 0.0,
        false => f64::from(Tensor::cat(norm.squares, 0).sum().into_scalar::<f32>()).sqrt(),
    }
}

struct Updater<'a> {
    optimizer: &'a mut AdamW,
    gradients: GradientsParams,
    factor: f64,
}

impl ModuleMapper for Updater<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
        let (id, value, mapper) = param.consume();
        let value = self.optimizer.update(id, value.inner(), gradient, self.factor);
        Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
    }
}

impl SaveOptimizer for AdamW {
    fn moments(&self, id: ParamId) -> Option<(u64, Vec<f32>, Vec<f32>)> {
        let state = self.states.get(&id)?;
        let (first, second) = match &state.moments {
            Moments::Host { first, second } => (first.clone(), second.clone()),
            Moments::Device { first, second } => (
                first.clone().into_data().try_into_vec().ok()?,
                second.clone().into_data().try_into_vec().ok()?,
            ),
        };
        Some((state.steps, first, second))
    }

    fn contains(&self, id: ParamId) -> bool {
        self.states.contains_key(&id)
    }

    fn settings(&self) -> AdamWSettings {
        self.settings
    }
}
