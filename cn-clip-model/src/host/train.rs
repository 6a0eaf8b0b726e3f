//! Layers of training as operations of Burn, with gradients by [`Block`].

use std::sync::Arc;

use burn::{
    backend::{
        Autodiff, BackendTypes, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            checkpoint::{
                base::Checkpointer,
                strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing},
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        flex::FlexTensor,
    },
    nn,
    tensor::{DType, GradientCheckpointingStrategy, Shape, Tensor, TensorData},
};

use super::{
    backward::BlockGradients,
    block::{Block, Dropouts, Kept, Linear},
    kernel::has_vectors,
    layer::Order,
    math::Activation,
    norm::Norm,
    packed::View,
    sequences::Sequences,
    source::Source,
};
use crate::{text::bert, vision::vit};

/// A tensor with a graph.
type Tracked = <Autodiff<Flex> as BackendTypes>::FloatTensorPrimitive;

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
    let mut inputs = Inputs::new(x)?;
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
    inputs.apply::<VISION_INPUTS>(kind, sequences, [None, None, None], x.dims())
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
    let mut inputs = Inputs::new(x)?;
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
    inputs.apply::<TEXT_INPUTS>(kind, sequences, dropouts, x.dims())
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

/// Rows and parameters in a fixed order.
struct Inputs {
    strategy: Option<GradientCheckpointingStrategy>,
    sources: Vec<Source>,
    /// The same with their graphs, where there are any.
    tracked: Vec<Tracked>,
}

impl Inputs {
    fn new(x: &Tensor<3>) -> Option<Self> {
        if !has_vectors() {
            return None;
        }
        let strategy = x.gradient_checkpointing_strategy();
        let mut inputs = Self { strategy, sources: Vec::new(), tracked: Vec::new() };
        inputs.add(x.clone())?;
        Some(inputs)
    }

    fn add<const D: usize>(&mut self, tensor: Tensor<D>) -> Option<()> {
        if tensor.dtype() != DType::F32 || tensor.gradient_checkpointing_strategy() != self.strategy
        {
            return None;
        }
        let tracked: Tracked = match self.strategy {
            None => {
                self.sources.push(Source::of(tensor)?);
                return Some(());
            }
            Some(GradientCheckpointingStrategy::Balanced) => {
                tensor.try_into_primitive::<Autodiff<Flex, BalancedCheckpointing>>().ok()?
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                tensor.try_into_primitive::<Autodiff<Flex, NoCheckpointing>>().ok()?
            }
        };
        self.sources.push(Source::from(tracked.primitive()));
        self.tracked.push(tracked);
        Some(())
    }

    fn linear(&mut self, linear: &nn::Linear) -> Option<()> {
        self.add(linear.weight.val())?;
        self.add(linear.bias.as_ref()?.val())
    }

    fn norm(&mut self, norm: &nn::LayerNorm) -> Option<()> {
        self.add(norm.gamma.val())?;
        self.add(norm.beta.as_ref()?.val())
    }

    fn apply<const N: usize>(
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
        let layer = Layer { kind, sequences, dropouts, shape, sources: self.sources };
        match self.strategy {
            None => Some(Tensor::from_primitive::<Flex>(layer.forward().0)),
            Some(GradientCheckpointingStrategy::Balanced) => {
                record::<BalancedCheckpointing, N>(self.tracked, layer)
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                record::<NoCheckpointing, N>(self.tracked, layer)
            }
        }
    }
}

fn record<C: CheckpointStrategy, const N: usize>(
    inputs: Vec<Tracked>,
    layer: Layer,
) -> Option<Tensor<3>>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    let inputs: [Tracked; N] = inputs.try_into().ok()?;
    let prepared = Apply.prepare::<C>(inputs.each_ref().map(Tracked::node)).compute_bound();
    let (out, kept) = layer.forward();
    let out = match prepared.stateful() {
        OpsKind::Tracked(operation) => operation.finish(Arc::new((layer, kept)), out),
        OpsKind::UnTracked(operation) => operation.finish(out),
    };
    Some(Tensor::from_primitive::<Autodiff<Flex, C>>(out))
}

#[derive(Debug)]
struct Apply;

impl<const N: usize> Backward<Flex, N> for Apply {
    type State = Arc<(Layer, Kept)>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Source::from(&grads.consume::<Flex>(&ops.node));
        let (layer, kept) = Arc::unwrap_or_clone(ops.state);
        let found = layer.backward(kept, gradient);
        for ((parent, source), values) in ops.parents.into_iter().zip(&layer.sources).zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, tensor(values, source.shape()));
            }
        }
    }
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
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

impl Layer {
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

    /// Gradients of input and parameters.
    fn backward(&self, kept: Kept, gradient: Source) -> Vec<Vec<f32>> {
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
