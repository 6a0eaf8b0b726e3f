//! Attention of training: its context, and the gradients of queries, keys and values, for which the
//! probabilities are computed again.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::Set,
    head::{self, Head, HeadDropout, multiply_by},
    kernel::{Task, product, run, tile_columns},
    math::sum,
    packed::{Packed, View},
    rows::Rows,
    sequences::Sequences,
};
use crate::random::Dropout;

/// Scaled dot-product attention of heads.
pub(super) struct Attention<'a> {
    pub sequences: &'a Sequences,
    pub heads: usize,
    /// Of probabilities.
    pub dropout: Option<&'a Dropout>,
    /// `[asking rows, width]`.
    pub queries: &'a [f32],
    /// `[rows, 2 * width]`: keys, then values.
    pub keys_values: &'a [f32],
}

impl Attention<'_> {
    fn width(&self) -> usize {
        self.keys_values.len().checked_div(2 * self.sequences.rows()).unwrap_or(0)
    }

    /// `[heads, queries, head_width]` for each sequence.
    pub fn context(&self) -> Vec<f32> {
        let mut context = vec![0.0; self.queries.len()];
        let heads: Vec<_> = self.each_head().collect();
        let mut rest = context.as_mut_slice();
        let outs = heads.iter().map(|head| {
            let size = head.queries.rows() * head.depth();
            let (out, after) = std::mem::take(&mut rest).split_at_mut(size);
            rest = after;
            out
        });
        head::forward(&heads, outs.collect());
        context
    }

    /// Gradients of queries, keys and values, given the context and its gradient
    /// (`[asking rows, width]`): for each sequence and head, one after the other.
    pub fn backward(&self, context: &[f32], gradient: &[f32]) -> Vec<f32> {
        let (width, rows) = (self.width(), self.sequences.rows());
        let head_width = width / self.heads;
        let mut gradients = vec![0.0; self.queries.len() + 2 * rows * width];
        let (mut rest, mut context, mut start) = (gradients.as_mut_slice(), context, 0);
        let mut tasks = Vec::with_capacity(self.sequences.lengths.len() * self.heads);
        for (index, head) in self.each_head().enumerate() {
            let (queries, length) = (head.queries.rows(), head.length());
            let (out, after) =
                std::mem::take(&mut rest).split_at_mut((queries + 2 * length) * head_width);
            rest = after;
            let (own, after) = context.split_at(queries * head_width);
            context = after;
            let gradient =
                View { values: &gradient[start * width..][..queries * width], ..head.queries };
            if (index + 1) % self.heads == 0 {
                start += queries;
            }
            tasks.push(Backward { head, context: own, gradient, out });
        }
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            run(BackwardTask { task, scratch });
        });
        gradients
    }

    /// The heads of all sequences, in order.
    fn each_head(&self) -> impl Iterator<Item = Head<'_>> {
        let width = self.width();
        let columns = width / self.heads;
        let (mut queries, mut keys_values) = (self.queries, self.keys_values);
        self.sequences.lengths.iter().enumerate().flat_map(move |(sample, length)| {
            let (own_queries, rest) = queries.split_at(self.sequences.queries(*length) * width);
            queries = rest;
            let (own_keys_values, rest) = keys_values.split_at(length * 2 * width);
            keys_values = rest;
            (0..self.heads).map(move |head| {
                let first = head * columns;
                let queries = View { values: own_queries, stride: width, first, columns };
                let keys = View { values: own_keys_values, stride: 2 * width, first, columns };
                let values = View { first: width + first, ..keys };
                let dropout = self.dropout.map(|dropout| HeadDropout { dropout, sample, head });
                Head { queries, keys, values, dropout }
            })
        })
    }
}

/// Scratch memory of a task.
#[derive(Default)]
struct Scratch {
    forward: head::Scratch,
    own: Packed,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    /// Probabilities and gradients of the scores, by keys.
    by_key: [Rows<true>; 2],
}

struct Backward<'a> {
    head: Head<'a>,
    /// `[queries, head_width]`.
    context: &'a [f32],
    /// `[queries, head_width]`.
    gradient: View<'a>,
    /// `[queries + 2 * length, head_width]`.
    out: &'a mut [f32],
}

struct BackwardTask<'a> {
    task: Backward<'a>,
    scratch: &'a mut Scratch,
}

impl Task for BackwardTask<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Backward { head, context, gradient, out } = self.task;
        let Scratch { forward, own, scores, slopes, by_key } = self.scratch;
        let (length, depth, scale) = (head.length(), head.depth(), head.scale());
        let queries = context.len() / depth;
        let (of_queries, of_keys_values) = out.split_at_mut(queries * depth);
        let (of_keys, of_values) = of_keys_values.split_at_mut(length * depth);
        let panel = tile_columns();

        forward.keys.reset(depth, length, panel);
        forward.values.reset(depth, length, panel);
        own.reset(length, depth, panel);
        for row in 0..length {
            forward.keys.set_column(row, head.keys.row(row));
            forward.values.set_column(row, head.values.row(row));
            own.set_row(row, head.keys.row(row));
        }
        scores.resize(length, 0.0);
        let [probabilities, score_gradients] = by_key;
        probabilities.reset::<MR>(length, queries);
        score_gradients.reset::<MR>(length, queries);
        for (group, of_queries) in of_queries.chunks_mut(MR * depth).enumerate() {
            let (start, count) = (group * MR, of_queries.len() / depth);
            let totals = head.exponentials::<S, MR>(simd, (start, count), forward);
            let head::Scratch { rows, hidden, values, factors, .. } = &mut *forward;
            // Gradients of the probabilities after dropout.
            rows.reset::<MR>(count, depth);
            for row in 0..count {
                rows.set::<MR>(row, 0, gradient.row(start + row));
            }
            slopes.resize(MR * length, 0.0);
            let panels = 0..values.panels();
            product::<S, MR, _>(
                simd,
                rows,
                values,
                panels,
                0..depth,
                Set { out: slopes, width: length },
            );
            for (row, total) in totals.iter().enumerate().take(count) {
                let query = start + row;
                hidden.copy::<MR>(row, scores);
                let slopes = &mut slopes[row * length..][..length];
                let own = &context[query * depth..][..depth];
                let mean = sum(own, gradient.row(query), |context, gradient| context * gradient);
                let factor = 1.0 / total;
                let factors = head.factors(query, factors);
                multiply_by(slopes, factors);
                for (slope, score) in slopes.iter_mut().zip(scores.iter_mut()) {
                    *score *= factor;
                    *slope = *score * (*slope - mean) * scale;
                }
                multiply_by(scores, factors);
                probabilities.set_across::<MR>(query, scores);
                score_gradients.set_across::<MR>(query, slopes);
                hidden.set::<MR>(row, 0, slopes);
            }
            multiply::<S, MR, _>(simd, hidden, own, of_queries);
        }
        own.reset(queries, depth, panel);
        (0..queries).for_each(|row| own.set_row(row, head.queries.row(row)));
        multiply::<S, MR, _>(simd, score_gradients, own, of_keys);
        (0..queries).for_each(|row| own.set_row(row, gradient.row(row)));
        multiply::<S, MR, _>(simd, probabilities, own, of_values);
    }
}

/// The product, row-major.
#[inline(always)]
fn multiply<S: Simd, const MR: usize, const ACROSS: bool>(
    simd: S,
    rows: &Rows<ACROSS>,
    weight: &Packed,
    out: &mut [f32],
) {
    let panels = 0..weight.panels();
    product::<S, MR, _>(
        simd,
        rows,
        weight,
        panels,
        0..weight.depth,
        Set { out, width: weight.columns },
    );
}
