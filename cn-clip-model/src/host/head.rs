//! Scaled dot-product attention of one head of a sequence.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::{
    epilogue::{Epilogue, Sums, by_row},
    kernel::{Task, prefetch, product, run, tile_columns},
    math::exponentials,
    packed::{Packed, View},
    rows::Rows,
};
use crate::random::{Dropout, attention_counter};

/// One head of one sequence.
pub(super) struct Head<'a> {
    /// `[asking rows, head_width]`.
    pub queries: View<'a>,
    /// `[rows, head_width]`.
    pub keys: View<'a>,
    /// `[rows, head_width]`.
    pub values: View<'a>,
    /// Of probabilities.
    pub dropout: Option<HeadDropout<'a>>,
}

/// Dropout of a head of a sample.
pub(super) struct HeadDropout<'a> {
    pub dropout: &'a Dropout,
    pub sample: usize,
    pub head: usize,
}

/// Scratch memory of a task.
#[derive(Default)]
pub(super) struct Scratch {
    pub rows: Rows,
    pub hidden: Rows,
    pub keys: Packed,
    pub values: Packed,
    pub line: Vec<f32>,
    pub factors: Vec<f32>,
}

impl Head<'_> {
    /// Rows that are asked.
    #[inline(always)]
    pub fn length(&self) -> usize {
        self.keys.rows()
    }

    /// Values of a query.
    #[inline(always)]
    pub fn depth(&self) -> usize {
        self.keys.columns
    }

    /// What scores are multiplied by.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        1.0 / (self.depth() as f32).sqrt()
    }

    /// Has the processor bring some rows, of those that are there, to its cache.
    #[inline(always)]
    fn fetch(&self, rows: Range<usize>) {
        for view in [self.queries, self.keys, self.values] {
            let rows = view.values.chunks(view.stride).skip(rows.start).take(rows.len());
            rows.for_each(|row| prefetch(&row[view.first..][..view.columns]));
        }
    }

    /// Exponentials of the scores of `count` queries, at most `MR`, from `start` on, into `hidden`, and
    /// their sums.
    #[inline(always)]
    pub fn exponentials<S: Simd, const MR: usize>(
        &self,
        simd: S,
        (start, count): (usize, usize),
        scratch: &mut Scratch,
    ) -> [f32; MR] {
        let Scratch { rows, hidden, keys, line, .. } = scratch;
        let (length, depth, scale) = (self.length(), self.depth(), self.scale());
        rows.reset::<MR>(count, depth);
        for row in 0..count {
            line.clear();
            line.extend(self.queries.row(start + row).iter().map(|x| x * scale));
            rows.set::<MR>(row, 0, line);
        }
        hidden.reset::<MR>(count, length);
        product::<S, MR, _>(simd, rows, keys, 0..keys.panels(), 0..depth, Scores::<MR>(hidden));
        exponentials(hidden.blocks::<MR>(), length)
    }

    /// Dropout factors of the keys of a query; `None` where there is no dropout.
    #[inline(always)]
    pub fn factors<'a>(&self, query: usize, line: &'a mut Vec<f32>) -> Option<&'a [f32]> {
        let HeadDropout { dropout, sample, head } = self.dropout.as_ref()?;
        line.clear();
        line.extend(
            (0..self.length())
                .map(|key| dropout.factor(*sample, attention_counter(*head, query, key))),
        );
        Some(line)
    }
}

/// Writes scores.
struct Scores<'a, const MR: usize>(&'a mut Rows);

impl<const MR: usize> Epilogue for Scores<'_, MR> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, sums: Sums) {
        self.0.set_tile::<MR>(&sums, sums.column);
    }
}

/// Multiplies by factors, if there are some.
#[inline(always)]
pub(super) fn multiply_by(values: &mut [f32], factors: Option<&[f32]>) {
    if let Some(factors) = factors {
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
    }
}

/// Contexts of heads, `[asking rows, head_width]` each, into `outs`.
pub(super) fn forward(heads: &[Head], outs: Vec<&mut [f32]>) {
    outs.into_par_iter().enumerate().for_each_init(Scratch::default, |scratch, (index, out)| {
        run(Forward { head: &heads[index], next: heads.get(index + 1), out, scratch });
    });
}

/// Context of a head.
struct Forward<'a> {
    head: &'a Head<'a>,
    /// The head after it, which is fetched meanwhile.
    next: Option<&'a Head<'a>>,
    /// `[asking rows, head_width]`.
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Task for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let Self { head, next, out, scratch } = self;
        let (length, depth) = (head.length(), head.depth());
        scratch.keys.reset(depth, length, tile_columns());
        scratch.values.reset(length, depth, tile_columns());
        for row in 0..length {
            scratch.keys.set_column(row, head.keys.row(row));
            scratch.values.set_row(row, head.values.row(row));
        }
        for (group, out) in out.chunks_mut(MR * depth).enumerate() {
            let (start, count) = (group * MR, out.len() / depth);
            if let Some(next) = next {
                next.fetch(start..start + count);
            }
            let totals = head.exponentials::<S, MR>(simd, (start, count), scratch);
            let Scratch { hidden, values, line, factors, .. } = &mut *scratch;
            if head.dropout.is_some() {
                line.resize(length, 0.0);
                for row in 0..count {
                    hidden.copy::<MR>(row, line);
                    multiply_by(line, head.factors(start + row, factors));
                    hidden.set::<MR>(row, 0, line);
                }
            }
            product::<S, MR, _>(
                simd,
                hidden,
                values,
                0..values.panels(),
                0..length,
                by_row(
                    #[inline(always)]
                    |row, first, sums| {
                        let out = &mut out[row * depth + first..][..sums.len()];
                        let factor = 1.0 / totals[row];
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * factor);
                    },
                ),
            );
        }
    }
}
