//! Weights from a checkpoint into a model.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;

use super::{
    detect,
    keys::{Layout, ParamSpec, parameters, transpose},
    state_dict::Checkpoint,
    tensor::LazyTensor,
};
use crate::{
    Clip, ModelError,
    pos_embed::{grid_of, resize},
};

/// Puts the weights of a checkpoint into a model of the same architecture. A positional embedding
/// of another resolution is resized ([`crate::pos_embed`]).
///
/// Fails with one error that lists every missing, unexpected and wrongly shaped key; the model is
/// then lost, so load before anything else is done with it.
pub fn load(model: Clip, checkpoint: &Checkpoint) -> Result<Clip, ModelError> {
    fill(model, checkpoint, |_| true, true)
}

/// As [`load`], for those parameters of the model whose official key is `chosen`; whatever else
/// the checkpoint holds is left alone.
pub fn load_part(
    model: Clip,
    checkpoint: &Checkpoint,
    chosen: impl Fn(&str) -> bool,
) -> Result<Clip, ModelError> {
    fill(model, checkpoint, chosen, false)
}

/// Sides of the grids of the positional embedding of the image tower, that of the checkpoint and
/// that of the model, where loading resizes it.
pub fn resized_grid(model: &Clip, checkpoint: &Checkpoint) -> Option<(usize, usize)> {
    parameters(model).iter().find_map(|spec| {
        let (old, new) = grids(spec, checkpoint.get(&spec.key)?)?;
        (old != new).then_some((old, new))
    })
}

fn fill(
    model: Clip,
    checkpoint: &Checkpoint,
    chosen: impl Fn(&str) -> bool,
    whole: bool,
) -> Result<Clip, ModelError> {
    let specs: Vec<ParamSpec> =
        parameters(&model).into_iter().filter(|spec| chosen(&spec.key)).collect();
    let pairs = compare(&specs, checkpoint, whole)?;
    let values: Result<HashMap<ParamId, Vec<f32>>, ModelError> = pairs
        .into_par_iter()
        .map(|(spec, tensor)| {
            let values = match (spec.layout, grids(spec, tensor)) {
                (Layout::Transposed, _) => tensor.read_transposed()?,
                (_, Some((old, new))) if old != new => {
                    resize(&tensor.read()?, spec.shape[1], old, new)
                }
                _ => tensor.read()?,
            };
            Ok((spec.id, values))
        })
        .collect();
    Ok(model.map(&mut Filler { values: values? }))
}

/// Sides of the grids of a positional embedding in a file and in the model.
pub(super) fn grids(spec: &ParamSpec, tensor: &LazyTensor) -> Option<(usize, usize)> {
    match (&tensor.shape[..], &spec.shape[..]) {
        (&[old, width], &[new, same])
            if width == same && spec.key.ends_with("positional_embedding") =>
        {
            Some((grid_of(old)?, grid_of(new)?))
        }
        _ => None,
    }
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

pub(super) fn compare<'a>(
    specs: &'a [ParamSpec],
    checkpoint: &'a Checkpoint,
    whole: bool,
) -> Result<Vec<(&'a ParamSpec, &'a LazyTensor)>, ModelError> {
    let mut left: HashMap<&str, &LazyTensor> =
        checkpoint.state_dict.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
    let mut problems = Vec::new();
    let mut pairs = Vec::with_capacity(specs.len());
    for spec in specs {
        let shape = spec.official_shape();
        match left.remove(spec.key.as_str()) {
            None => problems.push(format!("missing: {} {shape:?}", spec.key)),
            Some(tensor) if !fits(tensor, spec) => problems.push(format!(
                "wrong shape: {} is {:?}, the model needs {shape:?}",
                spec.key, tensor.shape
            )),
            Some(tensor) => pairs.push((spec, tensor)),
        }
    }
    // In the file's order.
    for (key, tensor) in checkpoint.state_dict.iter().filter(|_| whole) {
        if left.contains_key(key.as_str()) {
            problems.push(format!("unexpected: {key} {:?}", tensor.shape));
        }
    }
    match problems.is_empty() {
        true => Ok(pairs),
        false => {
            let looks_like = detect::describe(checkpoint);
            Err(ModelError::Mismatch { name: checkpoint.name.clone(), problems, looks_like })
        }
    }
}

fn fits(tensor: &LazyTensor, spec: &ParamSpec) -> bool {
    match spec.layout {
        // `[]` or `[1]`.
        Layout::Scalar | Layout::Counter => tensor.count() == 1 && tensor.shape.len() <= 1,
        _ => tensor.shape == spec.official_shape() || grids(spec, tensor).is_some(),
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
