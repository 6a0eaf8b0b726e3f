//! A transformer layer of training over the rows of all sequences without their padding.
//!
//! Kept for the backward pass are the inputs of every matrix product from which the rest is soon
//! computed again: projections, context, the sums with the residuals and the hidden values before
//! their activation; neither normalised rows nor probabilities nor dropout factors.

use std::ops::Range;

use super::{
    attend::Attention,
    layer::Order,
    math::{Activation, Norm},
    packed::{Packed, View},
    product::rows,
    sequences::{Asking, Sequences, context_rows},
};
use crate::random::{Dropout, hidden_counter};

/// Weight `[depth, columns]` and bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear<'a> {
    pub weight: View<'a>,
    pub bias: &'a [f32],
}

/// A transformer layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub heads: usize,
    pub order: Order,
    pub activation: Activation,
    /// To queries, keys and values.
    pub projections: [Linear<'a>; 3],
    /// Output of the attention.
    pub output: Linear<'a>,
    pub first_norm: Norm<&'a [f32]>,
    pub second_norm: Norm<&'a [f32]>,
    /// Feed-forward part.
    pub inner: Linear<'a>,
    pub outer: Linear<'a>,
}

/// Dropout of attention probabilities, of the attention's output and of the feed-forward part's.
pub(super) type Dropouts = [Option<Dropout>; 3];

/// What the backward pass needs beside input and parameters.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub queries: Vec<f32>,
    pub keys_values: Vec<f32>,
    pub context: Vec<f32>,
    /// Sum of the attention part with its residual.
    pub middle: Vec<f32>,
    /// Hidden values before the activation.
    pub hidden: Vec<f32>,
    /// Sum of the feed-forward part with its residual, where a norm follows.
    pub end: Vec<f32>,
}

impl Block<'_> {
    pub fn width(&self) -> usize {
        self.output.weight.columns
    }

    /// The norm between the attention and the feed-forward part.
    pub fn middle_norm(&self) -> Norm<&[f32]> {
        match self.order {
            Order::Before => self.second_norm,
            Order::After => self.first_norm,
        }
    }

    /// Output of the rows that ask, `[asking rows, width]`, of `x` (`[rows, width]`).
    pub fn forward(
        &self,
        x: &[f32],
        sequences: &Sequences,
        dropouts: &Dropouts,
    ) -> (Vec<f32>, Kept) {
        let width = self.width();
        let asking = sequences.asking();
        let row = |index: usize| &x[index * width..][..width];
        let moments = self.input_moments(x);
        let [query, key, value] = self.projections;
        let queries = rows(
            asking.len(),
            &Packed::new(&[query.weight]),
            #[inline(always)]
            |index, out| self.fill_input(x, &moments, asking[index].row, 0..width, out),
            #[inline(always)]
            |_, first, sums, out| add(sums, &query.bias[first..], out),
        );
        let bias = [key.bias, value.bias].concat();
        let keys_values = rows(
            sequences.rows(),
            &Packed::new(&[key.weight, value.weight]),
            #[inline(always)]
            |index, out| self.fill_input(x, &moments, index, 0..width, out),
            #[inline(always)]
            |_, first, sums, out| add(sums, &bias[first..], out),
        );
        let context = self.attention(sequences, dropouts, &queries, &keys_values).context();
        let by_row = context_rows(sequences, &context, self.heads, width);
        let middle = rows(
            asking.len(),
            &Packed::new(&[self.output.weight]),
            #[inline(always)]
            |index, out| by_row.fill(index, 0..width, out),
            #[inline(always)]
            |index, first, sums, out| {
                add(sums, &self.output.bias[first..], out);
                drop_out(&dropouts[1], asking[index], width, first, out);
                add_to(out, &row(asking[index].row)[first..]);
            },
        );
        let norm = self.middle_norm();
        let moments = norm.moments(&middle);
        let middle_row = |index: usize| &middle[index * width..][..width];
        let hidden = rows(
            asking.len(),
            &Packed::new(&[self.inner.weight]),
            #[inline(always)]
            |index, out| norm.apply(middle_row(index), moments[index], 0..width, out),
            #[inline(always)]
            |_, first, sums, out| add(sums, &self.inner.bias[first..], out),
        );
        let hidden_width = self.inner.weight.columns;
        let end = rows(
            asking.len(),
            &Packed::new(&[self.outer.weight]),
            #[inline(always)]
            |index, out| {
                out.copy_from_slice(&hidden[index * hidden_width..][..hidden_width]);
                self.activation.apply(out);
            },
            #[inline(always)]
            |index, first, sums, out| {
                add(sums, &self.outer.bias[first..], out);
                drop_out(&dropouts[2], asking[index], width, first, out);
                let columns = first..first + out.len();
                match self.order {
                    Order::Before => add_to(out, &middle_row(index)[columns]),
                    Order::After => {
                        norm.add(middle_row(index), moments[index], columns, out);
                    }
                }
            },
        );
        let (y, end) = match self.order {
            Order::Before => (end, Vec::new()),
            Order::After => (self.second_norm.of_rows(&end), end),
        };
        (y, Kept { queries, keys_values, context, middle, hidden, end })
    }

    pub fn attention<'a>(
        &self,
        sequences: &'a Sequences,
        dropouts: &'a Dropouts,
        queries: &'a [f32],
        keys_values: &'a [f32],
    ) -> Attention<'a> {
        let dropout = dropouts[0].as_ref();
        Attention { sequences, heads: self.heads, dropout, queries, keys_values }
    }

    /// Columns of a row of what is projected: the input, normalised where its norm is before.
    #[inline(always)]
    pub fn fill_input(
        &self,
        x: &[f32],
        moments: &[(f32, f32)],
        index: usize,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let row = &x[index * self.width()..][..self.width()];
        match self.order {
            Order::Before => self.first_norm.apply(row, moments[index], columns, out),
            Order::After => out.copy_from_slice(&row[columns]),
        }
    }

    /// Moments of the input's rows, where they are normalised.
    pub fn input_moments(&self, x: &[f32]) -> Vec<(f32, f32)> {
        match self.order {
            Order::Before => self.first_norm.moments(x),
            Order::After => Vec::new(),
        }
    }
}

#[inline(always)]
fn add(sums: &[f32], bias: &[f32], out: &mut [f32]) {
    for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
        *out = sum + bias;
    }
}

#[inline(always)]
pub(super) fn add_to(out: &mut [f32], values: &[f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}

/// Multiplies values of a row, from column `first` on, by their dropout factors.
#[inline(always)]
pub(super) fn drop_out(
    dropout: &Option<Dropout>,
    Asking { sample, position, .. }: Asking,
    width: usize,
    first: usize,
    values: &mut [f32],
) {
    if let Some(dropout) = dropout {
        for (column, value) in values.iter_mut().enumerate() {
            *value *= dropout.factor(sample, hidden_counter(width, position, first + column));
        }
    }
}
