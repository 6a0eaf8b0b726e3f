//! Attention of training: its context, and the gradients of queries, keys and values, for which the
//! probabilities are computed again.

use pulp::Simd;
use rayon::prelude::*;

use super::{
    kernel::{Task, product, run, tile_columns},
    math::{exponentials, sum},
    packed::Packed,
    rows::{BLOCK, Rows},
    sequences::Sequences,
};
use crate::random::{Dropout, attention_counter};

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

/// One head of one sequence.
struct Head<'a> {
    sample: usize,
    head: usize,
    head_width: usize,
    /// `[queries, width]` of the sequence.
    queries: &'a [f32],
    /// `[length, 2 * width]` of the sequence.
    keys_values: &'a [f32],
    width: usize,
    dropout: Option<&'a Dropout>,
}

impl Attention<'_> {
    fn width(&self) -> usize {
        self.keys_values.len().checked_div(2 * self.sequences.rows()).unwrap_or(0)
    }

    /// `[heads, queries, head_width]` for each sequence.
    pub fn context(&self) -> Vec<f32> {
        let mut context = vec![0.0; self.queries.len()];
        let head_width = self.width() / self.heads;
        let mut rest = context.as_mut_slice();
        let tasks: Vec<_> = self
            .each_head()
            .map(|head| {
                let count = head.queries.len() / head.width.max(1) * head_width;
                let (out, after) = std::mem::take(&mut rest).split_at_mut(count);
                rest = after;
                (head, out)
            })
            .collect();
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (head, out)| {
            run(Forward { head, out, scratch });
        });
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
        for head in self.each_head() {
            let queries = head.queries.len() / width.max(1);
            let length = head.keys_values.len() / (2 * width).max(1);
            let (out, after) =
                std::mem::take(&mut rest).split_at_mut((queries + 2 * length) * head_width);
            rest = after;
            let (own, after) = context.split_at(queries * head_width);
            context = after;
            let gradient = &gradient[start * width..][..queries * width];
            if head.head + 1 == self.heads {
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
        let (mut queries, mut keys_values) = (self.queries, self.keys_values);
        self.sequences.lengths.iter().enumerate().flat_map(move |(sample, length)| {
            let (own_queries, rest) = queries.split_at(self.sequences.queries(*length) * width);
            queries = rest;
            let (own_keys_values, rest) = keys_values.split_at(length * 2 * width);
            keys_values = rest;
            (0..self.heads).map(move |head| Head {
                sample,
                head,
                head_width: width / self.heads,
                queries: own_queries,
                keys_values: own_keys_values,
                width,
                dropout: self.dropout,
            })
        })
    }
}

#[derive(Default)]
struct Scratch {
    rows: Rows,
    hidden: Rows,
    keys: Packed,
    values: Packed,
    own: Packed,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    factors: Vec<f32>,
    /// Probabilities and gradients of the scores, by keys.
    by_key: [Rows<true>; 2],
}

impl Head<'_> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.keys_values.len() / (2 * self.width)
    }

    /// Scores of a row, in whole blocks.
    #[inline(always)]
    fn places(&self) -> usize {
        self.length().next_multiple_of(BLOCK)
    }

    #[inline(always)]
    fn query(&self, row: usize) -> &[f32] {
        self.part(self.queries, self.width, row, 0)
    }

    #[inline(always)]
    fn key(&self, row: usize) -> &[f32] {
        self.part(self.keys_values, 2 * self.width, row, 0)
    }

    #[inline(always)]
    fn value(&self, row: usize) -> &[f32] {
        self.part(self.keys_values, 2 * self.width, row, self.width)
    }

    #[inline(always)]
    fn part<'b>(&self, values: &'b [f32], stride: usize, row: usize, first: usize) -> &'b [f32] {
        &values[row * stride + first + self.head * self.head_width..][..self.head_width]
    }

    /// Exponentials of the scores of a group of queries from `start` on, `[MR, places]`, and their
    /// sums.
    #[inline(always)]
    fn scores<S: Simd, const MR: usize>(
        &self,
        simd: S,
        start: usize,
        count: usize,
        keys: &Packed,
        rows: &mut Rows,
        scores: &mut Vec<f32>,
    ) -> [f32; MR] {
        let (length, depth) = (self.length(), self.head_width);
        let scale = 1.0 / (depth as f32).sqrt();
        rows.reset::<MR>(count, depth);
        for row in 0..count {
            rows.set::<MR>(row, 0, self.query(start + row));
        }
        let places = self.places();
        scores.resize(MR * places, 0.0);
        product::<S, MR, _>(simd, rows, keys, 0..keys.panels(), 0..depth, |row, first, sums| {
            let scores = &mut scores[row * places + first..][..sums.len()];
            scores.iter_mut().zip(sums).for_each(|(score, sum)| *score = sum * scale);
        });
        let mut totals = [1.0; MR];
        for (total, scores) in totals.iter_mut().zip(scores.chunks_exact_mut(places)).take(count) {
            [*total] = exponentials(scores.as_chunks_mut().0.as_chunks_mut().0, length);
        }
        totals
    }

    /// Dropout factors of the keys of a query; `None` where there is no dropout.
    #[inline(always)]
    fn factors<'b>(&self, query: usize, line: &'b mut Vec<f32>) -> Option<&'b [f32]> {
        let dropout = self.dropout?;
        line.clear();
        line.extend(
            (0..self.length())
                .map(|key| dropout.factor(self.sample, attention_counter(self.head, query, key))),
        );
        Some(line)
    }
}

struct Forward<'a> {
    head: Head<'a>,
    /// `[queries, head_width]`.
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Task for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { head, out, scratch } = self;
        let Scratch { rows, hidden, keys, values, scores, factors, .. } = scratch;
        let (length, depth) = (head.length(), head.head_width);
        keys.reset(depth, length, tile_columns());
        values.reset(length, depth, tile_columns());
        for row in 0..length {
            keys.set_column(row, head.key(row));
            values.set_row(row, head.value(row));
        }
        for (group, out) in out.chunks_mut(MR * depth).enumerate() {
            let (start, count) = (group * MR, out.len() / depth);
            let totals = head.scores::<S, MR>(simd, start, count, keys, rows, scores);
            hidden.reset::<MR>(count, length);
            for row in 0..count {
                let scores = &mut scores[row * head.places()..][..length];
                multiply_by(scores, head.factors(start + row, factors));
                hidden.set::<MR>(row, 0, scores);
            }
            let panels = 0..values.panels();
            product::<S, MR, _>(simd, hidden, values, panels, 0..length, |row, first, sums| {
                let out = &mut out[row * depth + first..][..sums.len()];
                let factor = 1.0 / totals[row];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * factor);
            });
        }
    }
}

struct Backward<'a> {
    head: Head<'a>,
    /// `[queries, head_width]`.
    context: &'a [f32],
    /// `[queries, width]`, that of the context of all heads.
    gradient: &'a [f32],
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
        let Scratch { rows, hidden, keys, values, own, scores, slopes, factors, by_key } =
            self.scratch;
        let (length, depth) = (head.length(), head.head_width);
        let queries = context.len() / depth;
        let (of_queries, of_keys_values) = out.split_at_mut(queries * depth);
        let (of_keys, of_values) = of_keys_values.split_at_mut(length * depth);
        let scale = 1.0 / (depth as f32).sqrt();
        let panel = tile_columns();
        let given = |row: usize| head.part(gradient, head.width, row, 0);

        keys.reset(depth, length, panel);
        values.reset(depth, length, panel);
        own.reset(length, depth, panel);
        for row in 0..length {
            keys.set_column(row, head.key(row));
            values.set_column(row, head.value(row));
            own.set_row(row, head.key(row));
        }
        let [probabilities, score_gradients] = by_key;
        probabilities.reset::<MR>(length, queries);
        score_gradients.reset::<MR>(length, queries);
        for (group, of_queries) in of_queries.chunks_mut(MR * depth).enumerate() {
            let (start, count) = (group * MR, of_queries.len() / depth);
            let totals = head.scores::<S, MR>(simd, start, count, keys, rows, scores);
            // Gradients of the probabilities after dropout.
            rows.reset::<MR>(count, depth);
            for row in 0..count {
                rows.set::<MR>(row, 0, given(start + row));
            }
            slopes.resize(MR * length, 0.0);
            let panels = 0..values.panels();
            product::<S, MR, _>(simd, rows, values, panels, 0..depth, |row, first, sums| {
                slopes[row * length + first..][..sums.len()].copy_from_slice(sums);
            });
            hidden.reset::<MR>(count, length);
            for (row, total) in totals.iter().enumerate().take(count) {
                let query = start + row;
                let scores = &mut scores[row * head.places()..][..length];
                let slopes = &mut slopes[row * length..][..length];
                let own = &context[query * depth..][..depth];
                let mean = sum(own, given(query), |context, gradient| context * gradient);
                let factor = 1.0 / total;
                let dropout = head.factors(query, factors);
                multiply_by(slopes, dropout);
                for (slope, score) in slopes.iter_mut().zip(scores.iter_mut()) {
                    *score *= factor;
                    *slope = *score * (*slope - mean) * scale;
                }
                multiply_by(scores, dropout);
                probabilities.set_across::<MR>(query, scores);
                score_gradients.set_across::<MR>(query, slopes);
                hidden.set::<MR>(row, 0, slopes);
            }
            multiply::<S, MR, _>(simd, hidden, own, of_queries);
        }
        own.reset(queries, depth, panel);
        (0..queries).for_each(|row| own.set_row(row, head.query(row)));
        multiply::<S, MR, _>(simd, score_gradients, own, of_keys);
        (0..queries).for_each(|row| own.set_row(row, given(row)));
        multiply::<S, MR, _>(simd, probabilities, own, of_values);
    }
}

#[inline(always)]
fn multiply_by(values: &mut [f32], factors: Option<&[f32]>) {
    if let Some(factors) = factors {
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
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
    product::<S, MR, _>(simd, rows, weight, panels, 0..weight.depth, |row, first, sums| {
        out[row * weight.columns + first..][..sums.len()].copy_from_slice(sums);
    });
}
