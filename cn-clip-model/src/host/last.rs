//! The last layer of a tower, of which nothing but the first row of each sequence is needed.
//!
//! One query a sequence asks all rows. Its product with the keys `X W_k` is that of `X` with
//! `W_k q`, a vector for each head, and its context, the mean of the values `X W_v`, is `W_v` times
//! the mean of `X`: no keys and values are computed. What the bias of the keys adds is the same for
//! all rows, and no probability depends on it.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::{Set, by_row},
    kernel::{Task, run},
    layer::{Block, Order, finish, starts},
    math::{Norm, exponentials, layer_norm, sum},
    norm::each_row,
    packed::View,
    rows::BLOCK,
    weight::{Input, Linear, Numbers, Weight},
};

/// The last layer.
#[derive(Debug)]
pub(super) struct Last {
    pub heads: Vec<LastHead>,
    pub block: Block,
}

/// Attention of a head.
#[derive(Debug)]
pub(super) struct LastHead {
    /// Width to head width.
    queries: Linear,
    /// Transposed: head width to width.
    keys: Weight,
    /// Width to head width.
    values: Linear,
}

impl LastHead {
    /// Of the columns of this head in the projections to queries, keys and values, with the bias of
    /// the first and the last.
    pub fn new(
        [queries, keys, values]: [View; 3],
        [of_queries, of_values]: [&[f32]; 2],
        numbers: Numbers,
    ) -> Self {
        let linear = |view, bias: &[f32]| Linear {
            weight: Weight::new(&[view], numbers),
            bias: bias.to_vec(),
        };
        let mut turned = Vec::with_capacity(keys.columns * keys.rows());
        for column in 0..keys.columns {
            turned.extend((0..keys.rows()).map(|row| keys.row(row)[column]));
        }
        Self {
            queries: linear(queries, of_queries),
            keys: Weight::new(&[View::whole(&turned, keys.rows())], numbers),
            values: linear(values, of_values),
        }
    }
}

/// The first row of each sequence after the last layer; `x` are the rows before it.
pub(super) fn first_rows(last: &Last, x: &[f32], lengths: &[usize]) -> Vec<f32> {
    let Last { heads, block } = last;
    let width = block.width();
    let normalised = match block.order {
        Order::Before => Some(normalise(x, &block.first_norm)),
        Order::After => None,
    };
    let rows = normalised.as_deref().unwrap_or(x);
    let mut context = vec![0.0; lengths.len() * width];
    let part = (context.len() / heads.len()).max(1);
    let outs = context.par_chunks_mut(part);
    heads.par_iter().zip(outs).for_each_init(Scratch::default, |scratch, (head, out)| {
        run(Attend { head, rows, width, lengths, out, scratch });
    });
    let mut x = select_first(x, lengths, width);
    // The heads lie one after the other, as those of one sequence do.
    finish(block, &mut x, (&context, heads.len()), &[lengths.len()], None);
    x
}

fn select_first(x: &[f32], lengths: &[usize], width: usize) -> Vec<f32> {
    starts(lengths).flat_map(|start| &x[start * width..][..width]).copied().collect()
}

/// Layer norm of all rows.
fn normalise(x: &[f32], norm: &Norm) -> Vec<f32> {
    let width = norm.scale.len();
    let mut out = vec![0.0; x.len()];
    each_row(
        &mut out,
        width,
        #[inline(always)]
        |index, out| layer_norm(&x[index * width..][..width], norm, out),
    );
    out
}

/// Scratch memory of a task.
#[derive(Default)]
struct Scratch {
    /// First rows, then the mean row of each sequence.
    rows: Input,
    queries: Input,
    /// `W_k q`, `[sequences, width]`.
    asked: Vec<f32>,
    scores: Vec<[[f32; BLOCK]; 1]>,
    line: Vec<f32>,
}

struct Attend<'a> {
    head: &'a LastHead,
    /// `[rows, width]` of all sequences.
    rows: &'a [f32],
    width: usize,
    lengths: &'a [usize],
    /// `[sequences, head_width]`.
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Task for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { head, rows: x, width, lengths, out, scratch } = self;
        let Scratch { rows, queries, asked, scores, line } = scratch;
        let (count, depth) = (lengths.len(), head.queries.weight.columns());

        rows.values.reset::<MR>(count, width);
        for (index, start) in starts(lengths).enumerate() {
            rows.values.set::<MR>(index, 0, &x[start * width..][..width]);
        }
        queries.values.reset::<MR>(count, depth);
        let scale = 1.0 / (depth as f32).sqrt();
        let Linear { weight, bias } = &head.queries;
        weight.multiply::<S, MR>(
            simd,
            rows,
            0..width,
            by_row(
                #[inline(always)]
                |row, first, sums| {
                    line.clear();
                    line.extend(
                        sums.iter().zip(&bias[first..]).map(|(sum, bias)| (sum + bias) * scale),
                    );
                    queries.values.set::<MR>(row, first, line);
                },
            ),
        );
        asked.resize(count * width, 0.0);
        head.keys.multiply::<S, MR>(simd, queries, 0..depth, Set { out: asked, width });

        line.resize(width, 0.0);
        let sequences = starts(lengths).zip(lengths).zip(asked.chunks_exact(width));
        for (index, ((start, length), asked)) in sequences.enumerate() {
            let x = &x[start * width..][..length * width];
            scores.resize(length.div_ceil(BLOCK), [[0.0; BLOCK]]);
            let places = scores.as_flattened_mut().as_flattened_mut();
            for (row, score) in x.chunks_exact(width).zip(places) {
                *score = sum(row, asked, |x, asked| x * asked);
            }
            let [total] = exponentials(scores, *length);
            line[..width].fill(0.0);
            let shares = scores.as_flattened().as_flattened();
            for (row, share) in x.chunks_exact(width).zip(shares) {
                let share = share / total;
                for (mean, x) in line.iter_mut().zip(row) {
                    *mean = x.mul_add(share, *mean);
                }
            }
            rows.values.set::<MR>(index, 0, &line[..width]);
        }
        let Linear { weight, bias } = &head.values;
        weight.multiply::<S, MR>(
            simd,
            rows,
            0..width,
            by_row(
                #[inline(always)]
                |row, first, sums| {
                    let out = &mut out[row * depth + first..][..sums.len()];
                    let sums = sums.iter().zip(&bias[first..]);
                    out.iter_mut().zip(sums).for_each(|(out, (sum, bias))| *out = sum + bias);
                },
            ),
        );
    }
}
