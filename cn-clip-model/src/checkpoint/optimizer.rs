//! AdamW state in the layout of `torch.optim`.

use std::sync::Arc;

use super::{
    pickle::{Node, NodeId},
    pytorch::Archive,
    save::AdamWSettings,
    source::Source,
    tensor::LazyTensor,
};
use crate::ModelError;

/// Optimizer state of a checkpoint, tensors unread.
#[derive(Debug, Clone)]
pub struct OptimizerState {
    /// Moments by the index that torch gave the parameter.
    pub moments: Vec<(usize, Moments)>,
    /// Number of parameters in each group, in order: no decay, decay.
    pub group_sizes: Vec<usize>,
    /// Hyper-parameters; weight decay is that of the last group.
    pub settings: AdamWSettings,
}

/// State of one parameter.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Steps done.
    pub step: f64,
    /// First moment, official shape.
    pub first: LazyTensor,
    /// Second moment, official shape.
    pub second: LazyTensor,
}

/// Whether the reference program excludes a parameter from weight decay, which also decides its
/// group and so its index in the optimizer state (`cn_clip/training/main.py`).
pub fn reference_no_decay(key: &str) -> bool {
    ["bn", "ln", "bias", "logit_scale"].iter().any(|part| key.contains(part))
}

/// Keys in the order of the optimizer state: the group without decay first.
pub fn reference_order<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let (mut order, decay): (Vec<&str>, Vec<&str>) = keys.partition(|key| reference_no_decay(key));
    order.extend(decay);
    order
}

pub(super) fn read(
    archive: &Archive,
    id: NodeId,
    source: &Arc<Source>,
) -> Result<OptimizerState, ModelError> {
    let pickle = &archive.pickle;
    let damaged = || source.damaged("its optimizer state has an unknown form");
    let groups = pickle.get(id, "param_groups").and_then(|id| pickle.items(id));
    let mut group_sizes = Vec::new();
    let groups = groups.ok_or_else(damaged)?;
    for group in groups {
        let params = pickle.get(*group, "params").and_then(|id| pickle.items(id));
        group_sizes.push(params.ok_or_else(damaged)?.len());
    }
    let state = pickle.get(id, "state").and_then(|id| pickle.entries(id)).ok_or_else(damaged)?;
    let mut moments = Vec::with_capacity(state.len());
    for (index, entry) in state {
        let index = pickle.int(*index).and_then(|index| usize::try_from(index).ok());
        let tensor = |key: &str| match pickle.get(*entry, key) {
            Some(id) => archive.tensor(id)?.ok_or_else(damaged),
            None => Err(damaged()),
        };
        // A number in old versions of torch, a tensor in new ones.
        let step = pickle.get(*entry, "step").ok_or_else(damaged)?;
        let step = match pickle.node(step) {
            Node::Int(step) => *step as f64,
            Node::Float(step) => *step,
            _ => tensor("step")?.read()?.first().copied().map(f64::from).ok_or_else(damaged)?,
        };
        let (first, second) = (tensor("exp_avg")?, tensor("exp_avg_sq")?);
        moments.push((index.ok_or_else(damaged)?, Moments { step, first, second }));
    }
    let number = |key: &str| {
        let group = groups.last().and_then(|group| pickle.get(*group, key));
        group.and_then(|id| pickle.float(id)).unwrap_or(0.0)
    };
    let betas = groups.last().and_then(|group| pickle.items(pickle.get(*group, "betas")?));
    let beta =
        |index: usize| betas.and_then(|betas| pickle.float(*betas.get(index)?)).unwrap_or(0.0);
    let settings = AdamWSettings {
        learning_rate: number("lr"),
        beta1: beta(0),
        beta2: beta(1),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
    };
    Ok(OptimizerState { moments, group_sizes, settings })
}
