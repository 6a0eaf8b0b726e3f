//! The layers of a tower, prepared for the kernels, and what is done with them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use burn::{
    nn,
    tensor::{Bytes, Device, Int, Tensor, TensorData},
};

use super::{
    integer,
    kernel::has_vectors,
    last::{Last, LastHead},
    layer::{Block, Layer, Layers, Order, first_rows},
    math::{Activation, Norm},
    packed::{Packed, View},
    patches::Patches,
    source::Source,
    weight::{Linear, Numbers, Weight},
    words::{Token, Words},
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
    /// Of a ViT.
    patches: Option<Patches>,
    layers: Layers,
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

    fn tower(
        &self,
        sources: Vec<Source>,
        make: impl FnOnce(Parts) -> Option<(Option<Patches>, Layers)>,
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
        let (patches, layers) = make(parts)?;
        let tower = Arc::new(Tower { patches, layers, sources: pointers });
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

    /// A weight and its bias.
    fn view(&mut self) -> Option<(View<'a>, &'a [f32])> {
        let (weight, bias) = (self.next()?, self.next()?);
        Some((View::whole(weight, bias.len()), bias))
    }

    fn linear(&mut self) -> Option<Linear> {
        let (weight, bias) = self.view()?;
        Some(Linear { weight: Weight::new(&[weight], self.numbers), bias: bias.to_vec() })
    }

    /// To queries, keys and values, which are one matrix where the norms stand before and three where
    /// they stand after.
    fn projections(&mut self, order: Order) -> Option<[(View<'a>, &'a [f32]); 3]> {
        match order {
            Order::Before => {
                let (weight, bias) = self.view()?;
                let columns = weight.columns / 3;
                Some([0, 1, 2].map(|number| {
                    let first = number * columns;
                    (View { first, columns, ..weight }, &bias[first..][..columns])
                }))
            }
            Order::After => Some([self.view()?, self.view()?, self.view()?]),
        }
    }

    fn norm(&mut self, epsilon: f64) -> Option<Norm> {
        let (scale, shift) = (self.next()?.to_vec(), self.next()?.to_vec());
        Some(Norm { scale, shift, epsilon: epsilon as f32 })
    }
}

impl Parts<'_> {
    /// The patch embedding with all up to the first layer.
    fn patches(&mut self, width: usize, side: usize, grid: usize) -> Option<Patches> {
        let (weight, class, position) = (self.next()?, self.next()?, self.next()?);
        let (of_class, positions) = position.split_at(width);
        Some(Patches {
            weight: Packed::transposed(&[View::whole(weight, 3 * side * side)]),
            class: class.iter().zip(of_class).map(|(class, position)| class + position).collect(),
            positions: positions.to_vec(),
            norm: self.norm(vit::LAYER_NORM_EPSILON)?,
            side,
            grid,
        })
    }

    /// All layers; `None` where there are none.
    fn layers(&mut self, count: usize, kind: Kind) -> Option<Layers> {
        let all_but_last = (1..count).map(|_| self.layer(kind)).collect::<Option<_>>()?;
        Some(Layers { all_but_last, last: self.last(kind)? })
    }

    fn layer(&mut self, kind: Kind) -> Option<Layer> {
        let projections = self.projections(kind.order)?;
        let weight = Weight::new(&projections.map(|(weight, _)| weight), self.numbers);
        let bias = projections.map(|(_, bias)| bias).concat();
        let projections = Linear { weight, bias };
        Some(Layer { heads: kind.heads, projections, block: self.block(kind)? })
    }

    fn last(&mut self, kind: Kind) -> Option<Last> {
        let [queries, keys, values] = self.projections(kind.order)?;
        let columns = queries.0.columns / kind.heads;
        let head = |head: usize| {
            let first = head * columns;
            let weights = [queries, keys, values].map(|(view, _)| View {
                first: view.first + first,
                columns,
                ..view
            });
            let bias = [queries, values].map(|(_, bias)| &bias[first..][..columns]);
            LastHead::new(weights, bias, self.numbers)
        };
        Some(Last { heads: (0..kind.heads).map(head).collect(), block: self.block(kind)? })
    }

    fn block(&mut self, kind: Kind) -> Option<Block> {
        Some(Block {
            order: kind.order,
            activation: kind.activation,
            output: self.linear()?,
            first_norm: self.norm(kind.epsilon)?,
            second_norm: self.norm(kind.epsilon)?,
            inner: self.linear()?,
            outer: self.linear()?,
        })
    }
}

/// What all layers of a tower have in common.
#[derive(Clone, Copy)]
struct Kind {
    heads: usize,
    order: Order,
    activation: Activation,
    epsilon: f64,
}

/// Whether evaluation on a device gains from whole numbers.
pub(crate) fn has_integers(device: &Device) -> bool {
    integer::is_available() && Source::of(Tensor::<1>::zeros([1], device)).is_some()
}

/// Runs a ViT on `pixels` (`[batch, 3, R, R]`) up to its last block and returns the class token of
/// that, `[batch, 1, width]`; `None` where only Burn can.
pub(crate) fn vision(vit: &vit::VisionTransformer, pixels: &Tensor<4>) -> Option<Tensor<3>> {
    let mut sources = Sources(has_vectors().then(Vec::new));
    let input = Source::of(pixels.clone())?;
    let blocks = &vit.transformer.resblocks;
    sources.add(vit.conv1.weight.val());
    sources.add(vit.class_embedding.val());
    sources.add(vit.positional_embedding.val());
    sources.norm(&vit.ln_pre);
    for block in blocks {
        sources.linear(&block.attn.in_proj);
        sources.linear(&block.attn.out_proj);
        sources.norm(&block.ln_1);
        sources.norm(&block.ln_2);
        sources.linear(&block.mlp.c_fc);
        sources.linear(&block.mlp.c_proj);
    }
    let heads = blocks.first()?.attn.heads();
    let [width, channels, side, _] = vit.conv1.weight.shape().dims::<4>();
    let [batch, colours, resolution, other] = pixels.dims();
    let grid = resolution / side;
    let fits = grid * grid == vit.patches() && other == resolution;
    if !fits || [channels, colours] != [3; 2] {
        return None;
    }
    let tower = vit.prepared.tower(sources.0?, |mut parts| {
        let patches = parts.patches(width, side, grid)?;
        let kind = Kind {
            heads,
            order: Order::Before,
            activation: Activation::QuickGelu,
            epsilon: vit::LAYER_NORM_EPSILON,
        };
        Some((Some(patches), parts.layers(blocks.len(), kind)?))
    })?;
    let patches = tower.patches.as_ref()?;
    let rows = on_pool(|| {
        let x = patches.embed(input.values(), resolution);
        first_rows(&tower.layers, x, &vec![1 + grid * grid; batch])
    });
    Some(Tensor::from_data(TensorData::new(rows, [batch, 1, width]), &pixels.device()))
}

/// Runs a BERT with erf-GELU on token ids (`[batch, tokens]`), without the padding at the end, and
/// returns the first token of the last layer, `[batch, 1, hidden]`; `None` where only Burn can.
pub(crate) fn text(
    prepared: &Prepared,
    embeddings: &bert::Embeddings,
    layers: &[bert::Layer],
    heads: usize,
    tokens: &Tensor<2, Int>,
) -> Option<Tensor<3>> {
    let mut sources = Sources(has_vectors().then(Vec::new));
    let words = embeddings.word_embeddings.weight.val();
    let (width, device) = (words.dims()[1], words.device());
    let words = Source::of(words)?;
    let positions = Source::of(embeddings.position_embeddings.weight.val())?;
    let kinds = Source::of(embeddings.token_type_embeddings.weight.val())?;
    let scale = Source::of(embeddings.layer_norm.gamma.val())?;
    let shift = Source::of(embeddings.layer_norm.beta.as_ref()?.val())?;
    let (used, lengths) = used(tokens.clone())?;
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
    let tower = prepared.tower(sources.0?, |mut parts| {
        let kind = Kind {
            heads,
            order: Order::After,
            activation: Activation::Gelu,
            epsilon: bert::LAYER_NORM_EPSILON,
        };
        Some((None, parts.layers(layers.len(), kind)?))
    })?;
    let words = Words {
        words: words.values(),
        positions: positions.values(),
        kind: kinds.values().get(..width)?,
        norm: Norm {
            scale: scale.values(),
            shift: shift.values(),
            epsilon: bert::LAYER_NORM_EPSILON as f32,
        },
    };
    let rows = on_pool(|| Some(first_rows(&tower.layers, words.embed(&used)?, &lengths)))?;
    Some(Tensor::from_data(TensorData::new(rows, [lengths.len(), 1, width]), &device))
}

/// The tokens of all texts without their padding, and how many each has.
fn used(tokens: Tensor<2, Int>) -> Option<(Vec<Token>, Vec<usize>)> {
    let (ids, longest) = ids(tokens);
    let texts = ids.chunks_exact(longest.max(1));
    let lengths: Vec<usize> = texts.clone().map(length).collect::<Option<_>>()?;
    let mut used = Vec::with_capacity(lengths.iter().sum());
    for (text, length) in texts.zip(&lengths) {
        for (place, id) in text[..*length].iter().enumerate() {
            used.push((usize::try_from(*id).ok()?, place));
        }
    }
    Some((used, lengths))
}

/// Does some work on a thread of the pool: one outside would be put to sleep and woken for every round
/// of tasks.
fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Tokens of each text (`[batch, tokens]`) before its padding; `None` if padding (id 0) stands
/// before the end, or where `beside`, a tensor on the same device, is for Burn only.
pub(crate) fn lengths<const D: usize>(
    tokens: Tensor<2, Int>,
    beside: &Tensor<D>,
) -> Option<Vec<usize>> {
    Source::of(without_graph(beside.clone()))?;
    let (ids, longest) = ids(tokens);
    ids.chunks_exact(longest.max(1)).map(length).collect()
}

/// Ids, row-major, and how many a row has.
fn ids(tokens: Tensor<2, Int>) -> (Vec<i64>, usize) {
    let longest = tokens.dims()[1];
    (tokens.into_data().iter::<i64>().collect(), longest)
}

/// Tokens of a text before its padding; `None` if padding stands before the end, or where there is
/// nothing else.
fn length(text: &[i64]) -> Option<usize> {
    let length = text.iter().rposition(|id| *id != 0)? + 1;
    (!text[..length].contains(&0)).then_some(length)
}
