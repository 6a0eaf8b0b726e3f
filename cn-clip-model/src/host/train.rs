//! Layers of training as operations of Burn, with gradients by [`Block`].

use burn::{
    backend::flex::FlexTensor,
    nn,
    tensor::{Shape, Tensor},
};

use super::{
    backward::BlockGradients,
    block::{Block, Dropouts, Kept, Linear},
    layer::Order,
    math::{Activation, Norm},
    operation::{Inputs, Operation, tensor},
    packed::View,
    sequences::Sequences,
    source::Source,
};
use crate::{text::bert, vision::vit};

/// Inputs of a layer of a ViT and of BERT: rows and parameters.
const VISION_INPUTS: usize = 13;
const TEXT_INPUTS: usize = 17;

/// A block of a ViT on `[batch, tokens, width]`; with `first_only` the first token of its output,
/// `[batch, 1, width]`. `None` where only Burn can.
pub(crate) fn vision_block(
    block: &vit::ResidualAttentionBlock,
    x: &Tensor<3>,
    first_only: bool,
) -> Option<Tensor<3>> {
    let mut inputs = Inputs::new(x.clone())?;
    inputs.linear(&block.attn.in_proj)?;
    inputs.linear(&block.attn.out_proj)?;
    inputs.norm(&block.ln_1)?;
    inputs.norm(&block.ln_2)?;
    inputs.linear(&block.mlp.c_fc)?;
    inputs.linear(&block.mlp.c_proj)?;
    let [batch, tokens, _] = x.dims();
    let kind = Kind {
        heads: block.attn.heads(),
        order: Order::Before,
        activation: Activation::QuickGelu,
        epsilon: vit::LAYER_NORM_EPSILON as f32,
        joined: true,
    };
    let sequences = Sequences { lengths: vec![tokens; batch], first_only };
    inputs.layer::<VISION_INPUTS>(kind, sequences, [None, None, None], x.dims())
}

/// A layer of BERT with erf-GELU on `[batch, tokens, hidden]`, of which texts of these lengths are
/// no padding; the output has zeros there. With `first_only` the first token of the output,
/// `[batch, 1, hidden]`. `None` where only Burn can.
pub(crate) fn text_layer(
    layer: &bert::Layer,
    heads: usize,
    x: &Tensor<3>,
    lengths: &[usize],
    dropouts: Dropouts,
    first_only: bool,
) -> Option<Tensor<3>> {
    let attention = &layer.attention;
    let mut inputs = Inputs::new(x.clone())?;
    inputs.linear(&attention.self_attention.query)?;
    inputs.linear(&attention.self_attention.key)?;
    inputs.linear(&attention.self_attention.value)?;
    inputs.linear(&attention.output.dense)?;
    inputs.norm(&attention.output.layer_norm)?;
    inputs.norm(&layer.output.layer_norm)?;
    inputs.linear(&layer.intermediate.dense)?;
    inputs.linear(&layer.output.dense)?;
    let kind = Kind {
        heads,
        order: Order::After,
        activation: Activation::Gelu,
        epsilon: bert::LAYER_NORM_EPSILON as f32,
        joined: false,
    };
    let sequences = Sequences { lengths: lengths.to_vec(), first_only };
    inputs.layer::<TEXT_INPUTS>(kind, sequences, dropouts, x.dims())
}

/// What a layer is, beside its parameters.
#[derive(Debug, Clone, Copy)]
struct Kind {
    heads: usize,
    order: Order,
    activation: Activation,
    epsilon: f32,
    /// Whether queries, keys and values have one matrix.
    joined: bool,
}

impl Inputs {
    fn linear(&mut self, linear: &nn::Linear) -> Option<()> {
        self.add(linear.weight.val())?;
        self.add(linear.bias.as_ref()?.val())
    }

    fn norm(&mut self, norm: &nn::LayerNorm) -> Option<()> {
        self.add(norm.gamma.val())?;
        self.add(norm.beta.as_ref()?.val())
    }

    fn layer<const N: usize>(
        self,
        kind: Kind,
        sequences: Sequences,
        dropouts: Dropouts,
        shape: [usize; 3],
    ) -> Option<Tensor<3>> {
        let [batch, tokens, _] = shape;
        let fits = |length: &usize| (1..=tokens).contains(length);
        if sequences.lengths.len() != batch || !sequences.lengths.iter().all(fits) {
            return None;
        }
        let layer = |sources| Layer { kind, sequences, dropouts, shape, sources };
        self.apply::<N, 3, _>(layer, |_| ())
    }
}

/// A layer, its input and its parameters.
#[derive(Debug, Clone)]
struct Layer {
    kind: Kind,
    sequences: Sequences,
    dropouts: Dropouts,
    /// `[batch, tokens, width]` of the input.
    shape: [usize; 3],
    /// Input and parameters.
    sources: Vec<Source>,
}

impl Operation for Layer {
    type Kept = Kept;

    fn inputs(&self) -> &[Source] {
        &self.sources
    }

    fn forward(&self) -> (FlexTensor, Kept) {
        let [batch, tokens, width] = self.shape;
        let x = self.without_padding(self.sources[0].values());
        let (y, kept) = self.block().forward(&x, &self.sequences, &self.dropouts);
        let (y, tokens) = match self.sequences.first_only {
            true => (y, 1),
            false => (self.with_padding(y), tokens),
        };
        (tensor(y, Shape::from([batch, tokens, width])), kept)
    }

    fn backward(&self, kept: Kept, gradient: Source, _: bool) -> Vec<Vec<f32>> {
        let x = self.without_padding(self.sources[0].values());
        let gradient = match self.sequences.first_only {
            true => gradient.values().into(),
            false => self.without_padding(gradient.values()),
        };
        let BlockGradients { input, projections, output, first_norm, second_norm, inner, outer } =
            self.block().backward(&x, &self.sequences, &self.dropouts, kept, gradient);
        let rest = [output, first_norm, second_norm, inner, outer];
        let parameters = projections.into_iter().chain(rest).flatten();
        std::iter::once(self.with_padding(input)).chain(parameters).collect()
    }
}

impl Layer {
    /// Views of the parameters.
    fn block(&self) -> Block<'_> {
        let Kind { heads, order, activation, epsilon, joined } = self.kind;
        let width = self.shape[2];
        let values = |index: usize| self.sources[1 + index].values();
        let linear = |index: usize| {
            let bias = values(index + 1);
            Linear { weight: View::whole(values(index), bias.len()), bias }
        };
        let norm = |index: usize| Norm { scale: values(index), shift: values(index + 1), epsilon };
        let projection = |part: usize| match joined {
            true => {
                let (first, Linear { weight, bias }) = (part * width, linear(0));
                let weight = View { first, columns: width, ..weight };
                Linear { weight, bias: &bias[first..][..width] }
            }
            false => linear(2 * part),
        };
        let next = if joined { 2 } else { 6 };
        Block {
            heads,
            order,
            activation,
            projections: [0, 1, 2].map(projection),
            output: linear(next),
            first_norm: norm(next + 2),
            second_norm: norm(next + 4),
            inner: linear(next + 6),
            outer: linear(next + 8),
        }
    }

    /// Rows `[batch, tokens, width]` that are no padding.
    fn without_padding<'a>(&self, values: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        let [_, tokens, width] = self.shape;
        let Sequences { lengths, .. } = &self.sequences;
        if lengths.iter().all(|length| *length == tokens) {
            return values.into();
        }
        let mut used = Vec::with_capacity(self.sequences.rows() * width);
        for (rows, length) in values.chunks_exact((tokens * width).max(1)).zip(lengths) {
            used.extend_from_slice(&rows[..length * width]);
        }
        used.into()
    }

    /// The reverse, with zeros for padding.
    fn with_padding(&self, values: Vec<f32>) -> Vec<f32> {
        let [batch, tokens, width] = self.shape;
        if values.len() == batch * tokens * width {
            return values;
        }
        let mut padded = vec![0.0; batch * tokens * width];
        let mut rest = values.as_slice();
        let texts = padded.chunks_exact_mut((tokens * width).max(1));
        for (rows, length) in texts.zip(&self.sequences.lengths) {
            let (own, after) = rest.split_at(length * width);
            rows[..own.len()].copy_from_slice(own);
            rest = after;
        }
        padded
    }
}
