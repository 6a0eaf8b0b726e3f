//! Transformer layers over the rows of all sequences, one after the other: `[rows, width]`.
//!
//! A layer is two rounds of tasks: attention, a head of a sequence each; and all the rest, which needs
//! nothing of other rows and so stays in the cache: output, feed-forward part, and the projections to
//! queries, keys and values of the next layer.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::{Add, Epilogue, Sums, by_row},
    head::{self, Head},
    kernel::{Task, run},
    last::{self, Last},
    math::{Activation, Norm, layer_norm, normalise},
    packed::View,
    product::block_rows,
    rows::Rows,
    weight::{Input, Linear},
};

/// Hidden values that are computed before they are multiplied on.
const BLOCK_HIDDEN: usize = 768;

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Before attention and feed-forward part, as in a ViT.
    Before,
    /// After the sums with the residuals, as in BERT.
    After,
}

/// The layers of a tower, of which the first row of each sequence is wanted.
#[derive(Debug)]
pub(super) struct Layers {
    pub all_but_last: Vec<Layer>,
    pub last: Last,
}

/// A transformer layer of which all rows are needed.
#[derive(Debug)]
pub(super) struct Layer {
    pub heads: usize,
    /// Queries, keys and values side by side.
    pub projections: Linear,
    pub block: Block,
}

/// A layer without its attention.
#[derive(Debug)]
pub(super) struct Block {
    pub order: Order,
    /// Output of the attention.
    pub output: Linear,
    pub first_norm: Norm,
    pub second_norm: Norm,
    /// Feed-forward part.
    pub inner: Linear,
    pub activation: Activation,
    pub outer: Linear,
}

impl Block {
    /// Values of a row.
    pub fn width(&self) -> usize {
        self.output.weight.columns()
    }
}

/// Runs `layers` over sequences of these lengths, whose rows are `x`, and returns the first row of
/// each.
pub(super) fn first_rows(layers: &Layers, mut x: Vec<f32>, lengths: &[usize]) -> Vec<f32> {
    let Layers { all_but_last, last } = layers;
    if let Some(first) = all_but_last.first() {
        let mut packed = vec![0.0; x.len() * 3];
        let mut context = vec![0.0; x.len()];
        project(first, &x, &mut packed);
        for (index, layer) in all_but_last.iter().enumerate() {
            attend(layer, &packed, lengths, &mut context);
            let next = all_but_last.get(index + 1);
            let next = next.map(|layer| Next { layer, packed: &mut packed });
            finish(&layer.block, &mut x, (&context, layer.heads), lengths, next);
        }
    }
    last::first_rows(last, &x, lengths)
}

/// The first row of each sequence.
pub(super) fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
}

/// Scratch memory of a task.
#[derive(Default)]
struct Scratch {
    rows: Input,
    hidden: Input,
    line: Vec<f32>,
}

/// Projections of rows.
fn project(layer: &Layer, x: &[f32], out: &mut [f32]) {
    let width = layer.block.width();
    let block = block_rows(x.len() / width);
    let blocks = x.par_chunks(block * width).zip(out.par_chunks_mut(block * 3 * width));
    blocks.for_each_init(Scratch::default, |scratch, (x, out)| {
        run(Project { layer, x, out, scratch });
    });
}

struct Project<'a> {
    layer: &'a Layer,
    x: &'a [f32],
    /// `[rows, 3 * width]`.
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Task for Project<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { layer: Layer { projections, block, .. }, x, out, scratch } = self;
        let Scratch { rows, line, .. } = scratch;
        let width = block.width();
        let norm = (block.order == Order::Before).then_some(&block.first_norm);
        set_rows::<MR>(&mut rows.values, x, width, norm, line);
        let Linear { weight, bias } = projections;
        weight.multiply::<S, MR>(
            simd,
            rows,
            0..width,
            by_row(
                #[inline(always)]
                |row, first, sums| {
                    let out = &mut out[row * 3 * width + first..][..sums.len()];
                    let bias = &bias[first..][..sums.len()];
                    for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                        *out = sum + bias;
                    }
                },
            ),
        );
    }
}

/// Rows of a matrix, normalised if there is a norm.
#[inline(always)]
fn set_rows<const MR: usize>(
    rows: &mut Rows,
    x: &[f32],
    width: usize,
    norm: Option<&Norm>,
    line: &mut Vec<f32>,
) {
    rows.reset::<MR>(x.len() / width, width);
    line.resize(width, 0.0);
    for (index, row) in x.chunks_exact(width).enumerate() {
        match norm {
            Some(norm) => {
                layer_norm(row, norm, &mut line[..width]);
                rows.set::<MR>(index, 0, &line[..width]);
            }
            None => rows.set::<MR>(index, 0, row),
        }
    }
}

/// Attention of every sequence: `[heads, length, head_width]`.
fn attend(layer: &Layer, packed: &[f32], lengths: &[usize], context: &mut [f32]) {
    let stride = layer.projections.weight.columns();
    let (width, columns) = (stride / 3, stride / 3 / layer.heads);
    let (mut packed, mut context) = (packed, context);
    let mut heads = Vec::with_capacity(lengths.len() * layer.heads);
    let mut outs = Vec::with_capacity(heads.capacity());
    for length in lengths {
        let (values, rest) = packed.split_at(length * stride);
        packed = rest;
        for head in 0..layer.heads {
            let (out, rest) = context.split_at_mut(length * columns);
            context = rest;
            let first = head * columns;
            let [queries, keys, values] = [0, 1, 2].map(|number| View {
                values,
                stride,
                first: number * width + first,
                columns,
            });
            heads.push(Head { queries, keys, values, dropout: None });
            outs.push(out);
        }
    }
    head::forward(&heads, outs);
}

/// The layer after another.
pub(super) struct Next<'a> {
    layer: &'a Layer,
    /// Its projections, `[rows, 3 * width]`.
    packed: &'a mut [f32],
}

/// Output projection and feed-forward part, with the residuals, and the projections of the layer that
/// is next, for which the rows are still in the cache. `context` is that of sequences of these lengths,
/// `[heads, length, head_width]` each.
pub(super) fn finish(
    layer: &Block,
    x: &mut [f32],
    (context, heads): (&[f32], usize),
    lengths: &[usize],
    next: Option<Next>,
) {
    let width = layer.width();
    let block = block_rows(x.len() / width);
    // Where the first head of a row lies in `context`, and how far it is to the next head.
    let head_width = width / heads;
    let mut places = Vec::with_capacity(x.len() / width);
    let mut start = 0;
    for length in lengths {
        let row = |row: usize| (start + row * head_width, length * head_width);
        places.extend((0..*length).map(row));
        start += length * width;
    }
    let blocks = x.par_chunks_mut(block * width).zip(places.par_chunks(block));
    match next {
        None => blocks.for_each_init(Scratch::default, |scratch, (x, places)| {
            run(Finish { layer, x, context, head_width, places, scratch });
        }),
        Some(Next { layer: next, packed }) => {
            let blocks = blocks.zip(packed.par_chunks_mut(block * 3 * width));
            blocks.for_each_init(Scratch::default, |scratch, ((x, places), out)| {
                let (rows, own) = (&mut *x, &mut *scratch);
                run(Finish { layer, x: rows, context, head_width, places, scratch: own });
                run(Project { layer: next, x, out, scratch });
            });
        }
    }
}

struct Finish<'a> {
    layer: &'a Block,
    x: &'a mut [f32],
    context: &'a [f32],
    head_width: usize,
    places: &'a [(usize, usize)],
    scratch: &'a mut Scratch,
}

impl Task for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { layer, x, context, head_width, places, scratch } = self;
        let Scratch { rows, hidden, line, .. } = scratch;
        let width = layer.width();
        rows.values.reset::<MR>(places.len(), width);
        for (row, (start, stride)) in places.iter().enumerate() {
            for head in 0..width / head_width {
                let values = &context[start + head * stride..][..head_width];
                rows.values.set::<MR>(row, head * head_width, values);
            }
        }
        let Linear { weight, bias } = &layer.output;
        let sum = Add { x: &mut *x, width, bias: Some(bias) };
        weight.multiply::<S, MR>(simd, rows, 0..width, sum);
        if layer.order == Order::After {
            x.chunks_exact_mut(width).for_each(|row| normalise(row, &layer.first_norm));
        }

        let norm = (layer.order == Order::Before).then_some(&layer.second_norm);
        set_rows::<MR>(&mut rows.values, x, width, norm, line);
        let (inner, outer) = (&layer.inner, &layer.outer);
        inner.weight.prepare::<MR>(rows);
        for start in (0..inner.weight.columns()).step_by(BLOCK_HIDDEN) {
            let part = start..(start + BLOCK_HIDDEN).min(inner.weight.columns());
            hidden.values.reset::<MR>(places.len(), part.len());
            inner.weight.product::<S, MR>(
                simd,
                rows,
                part.clone(),
                0..width,
                Activate::<MR> { layer, out: &mut hidden.values, start },
            );
            let bias = (start == 0).then_some(&*outer.bias);
            let sum = Add { x: &mut *x, width, bias };
            outer.weight.multiply::<S, MR>(simd, hidden, part, sum);
        }
        if layer.order == Order::After {
            x.chunks_exact_mut(width).for_each(|row| normalise(row, &layer.second_norm));
        }
    }
}

/// Adds the bias of hidden values, applies their activation and writes them, from the column `start`
/// on.
struct Activate<'a, const MR: usize> {
    layer: &'a Block,
    out: &'a mut Rows,
    start: usize,
}

impl<const MR: usize> Epilogue for Activate<'_, MR> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, sums: Sums) {
        let bias = &self.layer.inner.bias[sums.column..][..sums.columns];
        for row in sums.values.chunks_exact_mut(sums.stride) {
            row.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
        // Of all rows at once, which is faster than row by row.
        self.layer.activation.apply(sums.values);
        self.out.set_tile::<MR>(&sums, sums.column - self.start);
    }
}
