//! Builds without the `flex` backend have no kernels of their own.

use burn::tensor::{Device, Int, Tensor};

use crate::{
    clip::Pass,
    random::Dropout,
    text::bert,
    vision::{resnet, vit},
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared;

impl Prepared {
    pub(crate) fn new(_: Numbers) -> Self {
        Self
    }

    pub(crate) fn release(&self) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    Floats,
    Integers,
}

pub(crate) fn has_integers(_: &Device) -> bool {
    false
}

pub(crate) fn vision(_: &vit::VisionTransformer, _: &Tensor<4>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn text(
    _: &Prepared,
    _: &bert::Embeddings,
    _: &[bert::Layer],
    _: usize,
    _: &Tensor<2, Int>,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn lengths<const D: usize>(_: Tensor<2, Int>, _: &Tensor<D>) -> Option<Vec<usize>> {
    None
}

pub(crate) fn vision_block(
    _: &vit::ResidualAttentionBlock,
    _: &Tensor<3>,
    _: bool,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn text_layer(
    _: &bert::Layer,
    _: usize,
    _: &Tensor<3>,
    _: &[usize],
    _: [Option<Dropout>; 3],
    _: bool,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn bottleneck(
    _: &resnet::Bottleneck,
    _: usize,
    _: &Tensor<4>,
    _: Pass<'_>,
) -> Option<Tensor<4>> {
    None
}

pub(crate) fn stem(_: &resnet::ModifiedResNet, _: &Tensor<4>, _: Pass<'_>) -> Option<Tensor<4>> {
    None
}
