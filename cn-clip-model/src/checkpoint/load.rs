//! Weights from a checkpoint into a model.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;

use super::{
    keys::{Layout, ParamSpec, parameters, transpose},
    state_dict::Checkpoint,
    tensor::LazyTensor,
};
use crate::{Clip, ModelError};

/// Puts the weights of a checkpoint into a model of the same architecture.
///
/// Fails with one error that lists every missing, unexpected and wrongly shaped key; the model is
/// then lost, so load before anything else is done with it.
pub fn load(model: Clip, checkpoint: &Checkpoint) -> Result<Clip, ModelError> {
    let specs = parameters(&model);
    let pairs = compare(&specs, checkpoint)?;
    let values: Result<HashMap<ParamId, Vec<f32>>, ModelError> = pairs
        .into_par_iter()
        .map(|(spec, tensor)| Ok((spec.id, to_module_layout(spec, tensor.read()?))))
        .collect();
    Ok(model.map(&mut Filler { values: values? }))
}

/// Values in official layout to the layout of the module.
pub fn to_module_layout(spec: &ParamSpec, values: Vec<f32>) -> Vec<f32> {
    match (spec.layout, spec.shape.as_slice()) {
        (Layout::Transposed, &[input, output]) => transpose(&values, output, input),
        _ => values,
    }
}

/// Values in the layout of the module to official layout.
pub fn to_official_layout(spec: &ParamSpec, values: Vec<f32>) -> Vec<f32> {
    match (spec.layout, spec.shape.as_slice()) {
        (Layout::Transposed, &[input, output]) => transpose(&values, input, output),
        _ => values,
    }
}

fn compare<'a>(
    specs: &'a [ParamSpec],
    checkpoint: &'a Checkpoint,
) -> Result<Vec<(&'a ParamSpec, &'a LazyTensor)>, ModelError> {
    let mut left: HashMap<&str, &LazyTensor> =
        checkpoint.state_dict.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
    let mut problems = Vec::new();
    let mut pairs = Vec::with_capacity(specs.len());
    for spec in specs {
        let shape = spec.official_shape();
        match left.remove(spec.key.as_str()) {
            None => problems.push(format!("missing: {} {shape:?}", spec.key)),
            Some(tensor) if tensor.count() != spec.count() || !same_shape(tensor, spec) => problems
                .push(format!(
                    "wrong shape: {} is {:?}, the model needs {shape:?}",
                    spec.key, tensor.shape
                )),
            Some(tensor) => pairs.push((spec, tensor)),
        }
    }
    // In the file's order.
    for (key, tensor) in &checkpoint.state_dict {
        if left.contains_key(key.as_str()) {
            problems.push(format!("unexpected: {key} {:?}", tensor.shape));
        }
    }
    match problems.is_empty() {
        true => Ok(pairs),
        false => Err(ModelError::Mismatch { name: checkpoint.name.clone(), problems }),
    }
}

fn same_shape(tensor: &LazyTensor, spec: &ParamSpec) -> bool {
    match spec.layout {
        // `[]` or `[1]`.
        Layout::Scalar | Layout::Counter => tensor.shape.len() <= 1,
        _ => tensor.shape == spec.official_shape(),
    }
}

struct Filler {
    values: HashMap<ParamId, Vec<f32>>,
}

impl ModuleMapper for Filler {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.values.remove(&param.id) else { return param };
        let (id, device) = (param.id, param.lazy_device());
        let tensor = Tensor::from_data(TensorData::new(values, param.lazy_shape()), &device);
        param.transform_for_load(tensor, id)
    }
}
