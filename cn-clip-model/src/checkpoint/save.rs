//! Writing of official `.pt` files from a model in memory.

use std::{collections::HashMap, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{FloatDType, Tensor},
};

use super::{
    archive::{self, Optimizer, StateOf, Weight},
    keys::{Layout, ParamSpec, parameters},
    load::to_official_layout,
    optimizer::{reference_no_decay, reference_order},
    output,
    state_dict::Progress,
    tensor::ElementType,
};
use crate::{Clip, ModelError};

/// AdamW state to be saved, in the layout of the module.
pub trait SaveOptimizer {
    /// Steps done for, and first and second moments of, a parameter; `None` if it is not trained.
    fn moments(&self, id: ParamId) -> Option<(u64, Vec<f32>, Vec<f32>)>;
    /// Whether [`moments`](Self::moments) has something for a parameter.
    fn contains(&self, id: ParamId) -> bool;
    /// Settings written into both parameter groups.
    fn settings(&self) -> AdamWSettings;
}

/// Hyper-parameters of a parameter group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Weight decay of the group that decays.
    pub weight_decay: f64,
}

/// Writes weights, progress and optimizer state to `path` in the official layout.
///
/// The file appears under its name only when it is whole and flushed; a failure leaves what was
/// there before.
pub fn save(
    path: &Path,
    model: &Clip,
    progress: &Progress,
    optimizer: Option<&dyn SaveOptimizer>,
) -> Result<(), ModelError> {
    let specs = parameters(model);
    let weights = specs.iter().map(|spec| Weight {
        key: format!("module.{}", spec.key),
        element: match spec.layout {
            Layout::Counter => ElementType::I64,
            _ => ElementType::F32,
        },
        shape: spec.official_shape(),
        item: (spec, Value::Weight),
    });
    let layout = optimizer.map(|optimizer| state_of(&specs, optimizer));
    let (pickle, items) = archive::describe(progress, weights.collect(), layout);
    let lost = |what: &str| ModelError::format(path, format!("{what} cannot be read"));
    output::file(path, |file, _| {
        archive::write(file, path, &pickle, items.len(), |index| {
            let (spec, value) = &items[index];
            let moments = || {
                let moments = optimizer.and_then(|optimizer| optimizer.moments(spec.id));
                moments.ok_or_else(|| lost("the optimizer state of a parameter"))
            };
            Ok(match value {
                Value::Weight => {
                    let values = values_of(model, spec.id);
                    let values = values.ok_or_else(|| lost("the values of a parameter"))?;
                    let values = to_official_layout(spec, values);
                    match spec.layout {
                        Layout::Counter => (values[0] as i64).to_le_bytes().to_vec(),
                        _ => to_bytes(&values),
                    }
                }
                Value::Step => to_bytes(&[moments()?.0 as f32]),
                Value::First => to_bytes(&to_official_layout(spec, moments()?.1)),
                Value::Second => to_bytes(&to_official_layout(spec, moments()?.2)),
            })
        })
    })
}

enum Value {
    Weight,
    Step,
    First,
    Second,
}

fn state_of<'a>(
    specs: &'a [ParamSpec],
    optimizer: &dyn SaveOptimizer,
) -> Optimizer<(&'a ParamSpec, Value)> {
    let trained: HashMap<&str, &ParamSpec> = specs
        .iter()
        .filter(|spec| optimizer.contains(spec.id))
        .map(|spec| (spec.key.as_str(), spec))
        .collect();
    let keys = specs.iter().map(|spec| spec.key.as_str()).filter(|key| trained.contains_key(key));
    let order = reference_order(keys);
    let states = order.iter().enumerate().map(|(index, key)| {
        let spec = trained[key];
        StateOf {
            index,
            shape: spec.official_shape(),
            step: (spec, Value::Step),
            first: (spec, Value::First),
            second: (spec, Value::Second),
        }
    });
    Optimizer {
        states: states.collect(),
        no_decay: order.iter().filter(|key| reference_no_decay(key)).count(),
        count: order.len(),
        settings: optimizer.settings(),
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Values of one parameter, as fp32 in the layout of the module.
fn values_of(model: &Clip, id: ParamId) -> Option<Vec<f32>> {
    struct Finder {
        id: ParamId,
        values: Option<Vec<f32>>,
    }
    impl ModuleVisitor for Finder {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.id == self.id {
                let data = param.val().cast(FloatDType::F32).into_data();
                self.values = data.try_into_vec().ok();
            }
        }
    }
    let mut finder = Finder { id, values: None };
    model.visit(&mut finder);
    finder.values
}
