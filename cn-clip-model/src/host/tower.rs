//! The layers of a tower, prepared for the kernels, and what is done with them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use burn::{
    nn,
    tensor::{Bytes, Device, Int, Tensor, TensorData},
};

use super::{
    integer,
    kernel::has_vectors,
    layer::{Layer, Order, first_rows},
    math::{Activation, Norm},
    packed::View,
    source::Source,
    weight::{Linear, Numbers, Weight},
};
use crate::{precision::without_graph, text::bert, vision::vit};

/// The prepared layers of a tower. Copies of the tower share them; they are made anew when the
/// weights are no longer those they were made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    tower: Arc<Mutex<Option<Arc<Tower>>>>,
    numbers: Numbers,
}

#[derive(Debug)]
struct Tower {
    layers: Vec<Layer>,
    /// The buffers of the parameters. A buffer that is shared with a weak pointer is not changed in
    /// place, so the same pointer means the same values.
    sources: Vec<Weak<Bytes>>,
}

impl Prepared {
    pub(crate) fn new(numbers: Numbers) -> Self {
        Self { numbers, ..Self::default() }
    }

    pub(crate) fn release(&self) {
        *self.tower.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn layers(
        &self,
        sources: Vec<Source>,
        make: impl FnOnce(Parts) -> Option<Vec<Layer>>,
    ) -> Option<Arc<Tower>> {
        let pointers: Vec<Weak<Bytes>> =
            sources.iter().map(|source| Arc::downgrade(&source.buffer())).collect();
        let mut prepared = self.tower.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |tower: &&Arc<Tower>| {
            let mut pairs = tower.sources.iter().zip(&pointers);
            tower.sources.len() == pointers.len() && pairs.all(|(a, b)| a.ptr_eq(b))
        };
        if let Some(tower) = prepared.as_ref().filter(same) {
            return Some(tower.clone());
        }
        // Free the old one first.
        *prepared = None;
        let parts = Parts { sources: sources.iter(), numbers: self.numbers };
        let tower = Arc::new(Tower { layers: make(parts)?, sources: pointers });
        *prepared = Some(tower.clone());
        Some(tower)
    }
}

/// Collects the parameters of a layer in a fixed order; the shapes are the module's.
struct Sources(Option<Vec<Source>>);

impl Sources {
    fn add<const D: usize>(&mut self, tensor: Tensor<D>) {
        if let Some(list) = &mut self.0 {
            match Source::of(tensor) {
                Some(source) => list.push(source),
                None => self.0 = None,
            }
        }
    }

    fn linear(&mut self, linear: &nn::Linear) {
        self.add(linear.weight.val());
        match &linear.bias {
            Some(bias) => self.add(bias.val()),
            None => self.0 = None,
        }
    }

    fn norm(&mut self, norm: &nn::LayerNorm) {
        self.add(norm.gamma.val());
        match &norm.beta {
            Some(beta) => self.add(beta.val()),
            None => self.0 = None,
        }
    }
}

/// Prepared parts in the order of [`Sources`].
struct Parts<'a> {
    sources: std::slice::Iter<'a, Source>,
    numbers: Numbers,
}

impl<'a> Parts<'a> {
    fn next(&mut self) -> Option<&'a [f32]> {
        self.sources.next().map(Source::values)
    }

    /// Linear layers of the same input, side by side.
    fn linear(&mut self, count: usize) -> Option<Linear> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (weight, own) = (self.next()?, self.next()?);
            weights.push(View::whole(weight, own.len()));
            bias.extend_from_slice(own);
        }
        Some(Linear { weight: Weight::new(&weights, self.numbers), bias })
    }

    fn norm(&mut self, epsilon: f64) -> Option<Norm> {
        let (scale, shift) = (self.next()?.to_vec(), self.next()?.to_vec());
        Some(Norm { scale, shift, epsilon: epsilon as f32 })
    }
}

impl Parts<'_> {
    /// A layer, whose projections are one matrix where the norms stand before and three where they
    /// stand after.
    fn layer(
        &mut self,
        heads: usize,
        order: Order,
        activation: Activation,
        epsilon: f64,
    ) -> Option<Layer> {
        let matrices = match order {
            Order::Before => 1,
            Order::After => 3,
        };
        Some(Layer {
            heads,
            order,
            activation,
            projections: self.linear(matrices)?,
            output: self.linear(1)?,
            first_norm: self.norm(epsilon)?,
            second_norm: self.norm(epsilon)?,
            inner: self.linear(1)?,
            outer: self.linear(1)?,
        })
    }
}

/// Whether evaluation on a device gains from whole numbers.
pub(crate) fn has_integers(device: &Device) -> bool {
    integer::is_available() && Source::of(Tensor::<1>::zeros([1], device)).is_some()
}

/// Runs the blocks of a ViT on `x` (`[batch, tokens, width]`) and returns the class token of the
/// last, `[batch, 1, width]`; `None` where only Burn can.
pub(crate) fn vision(
    prepared: &Prepared,
    blocks: &[vit::ResidualAttentionBlock],
    x: &Tensor<3>,
) -> Option<Tensor<3>> {
    let mut sources = Sources(has_vectors().then(Vec::new));
    let input = Source::of(x.clone())?;
    for block in blocks {
        sources.linear(&block.attn.in_proj);
        sources.linear(&block.attn.out_proj);
        sources.norm(&block.ln_1);
        sources.norm(&block.ln_2);
        sources.linear(&block.mlp.c_fc);
        sources.linear(&block.mlp.c_proj);
    }
    let heads = blocks.first()?.attn.heads();
    let tower = prepared.layers(sources.0?, |mut parts| {
        let layer =
            |_| parts.layer(heads, Order::Before, Activation::QuickGelu, vit::LAYER_NORM_EPSILON);
        blocks.iter().map(layer).collect()
    })?;
    let [batch, tokens, width] = x.dims();
    let rows = first_rows(&tower.layers, input.values().to_vec(), &vec![tokens; batch]);
    Some(Tensor::from_data(TensorData::new(rows, [batch, 1, width]), &x.device()))
}

/// Runs the layers of a BERT with erf-GELU on `x` (`[batch, tokens, hidden]`), without the padding
/// behind these lengths, and returns the first token of the last, `[batch, 1, hidden]`; `None` where only
/// Burn can.
pub(crate) fn text(
    prepared: &Prepared,
    layers: &[bert::Layer],
    heads: usize,
    x: &Tensor<3>,
    lengths: &[usize],
) -> Option<Tensor<3>> {
    let mut sources = Sources(has_vectors().then(Vec::new));
    let input = Source::of(x.clone())?;
    for layer in layers {
        let attention = &layer.attention;
        sources.linear(&attention.self_attention.query);
        sources.linear(&attention.self_attention.key);
        sources.linear(&attention.self_attention.value);
        sources.linear(&attention.output.dense);
        sources.norm(&attention.output.layer_norm);
        sources.norm(&layer.output.layer_norm);
        sources.linear(&layer.intermediate.dense);
        sources.linear(&layer.output.dense);
    }
    let [batch, longest, width] = x.dims();
    let tower = prepared.layers(sources.0?, |mut parts| {
        let layer =
            |_| parts.layer(heads, Order::After, Activation::Gelu, bert::LAYER_NORM_EPSILON);
        layers.iter().map(layer).collect()
    })?;
    let sequences = input.values().chunks_exact(longest * width).zip(lengths);
    let mut used = Vec::with_capacity(lengths.iter().sum::<usize>() * width);
    sequences.for_each(|(rows, length)| used.extend_from_slice(&rows[..length * width]));
    let rows = first_rows(&tower.layers, used, lengths);
    Some(Tensor::from_data(TensorData::new(rows, [batch, 1, width]), &x.device()))
}

/// Tokens of each text (`[batch, tokens]`) before its padding; `None` if padding (id 0) stands
/// before the end, or where `beside`, a tensor on the same device, is for Burn only.
pub(crate) fn lengths<const D: usize>(
    tokens: Tensor<2, Int>,
    beside: &Tensor<D>,
) -> Option<Vec<usize>> {
    Source::of(without_graph(beside.clone()))?;
    let longest = tokens.dims()[1];
    let ids: Vec<i64> = tokens.into_data().iter::<i64>().collect();
    let length = |text: &[i64]| {
        let length = text.iter().rposition(|id| *id != 0)? + 1;
        (!text[..length].contains(&0)).then_some(length)
    };
    ids.chunks_exact(longest.max(1)).map(length).collect()
}
