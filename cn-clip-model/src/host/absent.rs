//! Builds without the `flex` backend have no kernels of their own.

use burn::tensor::{Int, Tensor};

use crate::{text::bert, vision::vit};

#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared;

impl Prepared {
    pub(crate) fn release(&self) {}
}

pub(crate) fn vision(
    _: &Prepared,
    _: &[vit::ResidualAttentionBlock],
    _: &Tensor<3>,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn text(
    _: &Prepared,
    _: &[bert::Layer],
    _: usize,
    _: &Tensor<3>,
    _: Tensor<2, Int>,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn quick_gelu<const D: usize>(_: &Tensor<D>) -> Option<Tensor<D>> {
    None
}

pub(crate) fn gelu<const D: usize>(_: &Tensor<D>) -> Option<Tensor<D>> {
    None
}

pub(crate) fn softmax<const D: usize>(_: &Tensor<D>) -> Option<Tensor<D>> {
    None
}
