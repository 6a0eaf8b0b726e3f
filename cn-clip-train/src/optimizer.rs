//! AdamW with two parameter groups (arXiv 1711.05101; `torch.optim.AdamW`).

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::Tensor,
};
use cn_clip_model::{
    Clip,
    checkpoint::{
        AdamWSettings, Checkpoint, ParamSpec, SaveOptimizer, parameters, reference_no_decay,
        reference_order, to_module_layout,
    },
};

use crate::{
    TrainError,
    depth::{rate_factors, trained},
    moments::{Moments, Rates, Rule},
    step::StepOptions,
};

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

#[derive(Debug)]
struct State {
    steps: u64,
    moments: Moments,
    /// Whether they have followed a gradient since the last update of the parameter.
    ready: bool,
    /// Sum of the squares of that gradient, if it was asked for.
    squares: Option<Tensor<1>>,
}

/// AdamW over the trained parameters of a model.
#[derive(Debug)]
pub struct AdamW {
    /// Hyper-parameters; the learning rate is that of the last step.
    settings: AdamWSettings,
    decay: HashMap<ParamId, bool>,
    /// Factors of the learning rate; 1 where there is none.
    rates: HashMap<ParamId, f64>,
    states: Mutex<HashMap<ParamId, State>>,
    /// Whether tensors lie in ordinary memory and are updated in place there.
    host: bool,
}

impl AdamW {
    /// An optimizer without state. `host` tells that the device computes in ordinary memory.
    pub fn new(model: &Clip, settings: AdamWSettings, groups: DecayGroups, host: bool) -> Self {
        let decay = parameters(model).iter().map(|spec| (spec.id, groups.decays(spec))).collect();
        Self { settings, decay, rates: HashMap::new(), states: Mutex::default(), host }
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
        self.absorb(&model, gradients, factor, false);
        self.apply(model, rate)
    }

    /// The first half of a step: lets the moments follow gradients, multiplied by `factor`. The
    /// gradients of a model may come in parts, from several threads, each parameter once; none is
    /// kept, which saves as much memory as the trained parameters take. With `measure` their norm
    /// can be asked for.
    pub fn absorb(&self, model: &Clip, gradients: GradientsParams, factor: f64, measure: bool) {
        model.visit(&mut Absorber { optimizer: self, gradients, factor, measure });
    }

    /// Euclidean norm of what was absorbed to be measured since the last update.
    pub fn norm(&self, model: &Clip) -> f64 {
        let mut states = self.lock();
        let squares = parameters(model).into_iter().filter_map(|spec| {
            let state = states.get_mut(&spec.id)?;
            state.squares.take()
        });
        root_of_sum(squares.collect())
    }

    /// The second half of a step: updates every parameter whose gradient was absorbed.
    pub fn apply(&mut self, model: Clip, rate: f64) -> Clip {
        self.settings.learning_rate = rate;
        let mut states = mem::take(&mut *self.lock());
        let model = model.map(&mut Updater { optimizer: self, states: &mut states });
        *self.lock() = states;
        model
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ParamId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
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
        let device = model.device().inner();
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
            let steps = moments.step as u64;
            let moments = Moments::new(first, second, &device, self.host);
            states.insert(spec.id, State { steps, moments, ready: false, squares: None });
        }
        *self.lock() = states;
        Ok(())
    }

    fn follow<const D: usize>(&self, id: ParamId, gradient: Tensor<D>, factor: f64, measure: bool) {
        let squares = measure.then(|| gradient.clone().square().sum());
        // Out of the map: a thread that waits for others to compute may be lent to the other tower.
        let state = self.lock().remove(&id);
        let mut state = state.unwrap_or_else(|| State {
            steps: 0,
            moments: Moments::zeros(gradient.shape().num_elements(), &gradient.device(), self.host),
            ready: false,
            squares: None,
        });
        let AdamWSettings { beta1, beta2, .. } = self.settings;
        state.moments.follow(gradient, Rates { beta1, beta2, factor });
        state.steps += 1;
        state.ready = true;
        state.squares = squares;
        self.lock().insert(id, state);
    }

    fn rule(&self, id: ParamId, steps: u64) -> Rule {
        let settings = self.settings;
        let decays = self.decay.get(&id).copied().unwrap_or(false);
        let decay = if decays { settings.weight_decay } else { 0.0 };
        let rate = settings.learning_rate * self.rates.get(&id).copied().unwrap_or(1.0);
        let bias = |beta: f64| 1.0 - beta.powf(steps as f64);
        Rule {
            keep: 1.0 - rate * decay,
            rate: rate / bias(settings.beta1),
            root: bias(settings.beta2).sqrt(),
            epsilon: settings.epsilon,
        }
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
    root_of_sum(norm.squares)
}

fn root_of_sum(squares: Vec<Tensor<1>>) -> f64 {
    match squares.is_empty() {
        true => 0.0,
        false => f64::from(Tensor::cat(squares, 0).sum().into_scalar::<f32>()).sqrt(),
    }
}

struct Absorber<'a> {
    optimizer: &'a AdamW,
    gradients: GradientsParams,
    factor: f64,
    measure: bool,
}

impl ModuleVisitor for Absorber<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.optimizer.follow(param.id, gradient, self.factor, self.measure);
        }
    }
}

struct Updater<'a> {
    optimizer: &'a AdamW,
    states: &'a mut HashMap<ParamId, State>,
}

impl ModuleMapper for Updater<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let state = self.states.get_mut(&param.id).filter(|state| state.ready);
        let Some(state) = state else { return param };
        state.ready = false;
        let rule = self.optimizer.rule(param.id, state.steps);
        let (id, value, mapper) = param.consume();
        let value = state.moments.update(value.inner(), rule);
        Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
    }
}

impl SaveOptimizer for AdamW {
    fn moments(&self, id: ParamId) -> Option<(u64, Vec<f32>, Vec<f32>)> {
        let states = self.lock();
        let state = states.get(&id)?;
        let (first, second) = state.moments.values()?;
        Some((state.steps, first, second))
    }

    fn contains(&self, id: ParamId) -> bool {
        self.lock().contains_key(&id)
    }

    fn settings(&self) -> AdamWSettings {
        self.settings
    }
}
