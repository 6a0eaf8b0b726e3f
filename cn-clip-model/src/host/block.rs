//! A transformer layer of training, forwards and backwards, over the rows of all sequences without
//! their padding.
//!
//! Kept between the two are the inputs of every matrix product from which the rest is soon computed
//! again: projections, context, the sums with the residuals and the hidden values before their
//! activation; neither normalised rows nor probabilities nor dropout factors.

use std::{borrow::Cow, ops::Range};

use super::{
    attend::{Asking, Attention, Sequences, context_rows, gradient_rows},
    kernel::{Packed, View},
    layer::Order,
    math::Activation,
    norm::{Norm, add_rows},
    product::{Columns, across, column_sums, rows},
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
    pub first_norm: Norm<'a>,
    pub second_norm: Norm<'a>,
    /// Feed-forward part.
    pub inner: Linear<'a>,
    pub outer: Linear<'a>,
}

/// Dropout of attention probabilities, of the attention's output and of the feed-forward part's.
pub(super) type Dropouts = [Option<Dropout>; 3];

/// What the backward pass needs beside input and parameters.
#[derive(Debug)]
pub(super) struct Kept {
    queries: Vec<f32>,
    keys_values: Vec<f32>,
    context: Vec<f32>,
    /// Sum of the attention part with its residual.
    middle: Vec<f32>,
    /// Hidden values before the activation.
    hidden: Vec<f32>,
    /// Sum of the feed-forward part with its residual, where a norm follows.
    end: Vec<f32>,
}

/// Gradients by the input and, weight before bias, by the parameters.
#[derive(Debug)]
pub(super) struct BlockGradients {
    pub input: Vec<f32>,
    /// Queries, keys and values side by side, where their weights lie in one matrix.
    pub projections: Vec<[Vec<f32>; 2]>,
    pub output: [Vec<f32>; 2],
    pub first_norm: [Vec<f32>; 2],
    pub second_norm: [Vec<f32>; 2],
    pub inner: [Vec<f32>; 2],
    pub outer: [Vec<f32>; 2],
}

impl Block<'_> {
    fn width(&self) -> usize {
        self.output.weight.columns
    }

    /// The norm between the attention and the feed-forward part.
    fn middle_norm(&self) -> Norm<'_> {
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
        let input = of_rows(
            #[inline(always)]
            |index, columns, out| match self.order {
                Order::Before => self.first_norm.apply(row(index), moments[index], columns, out),
                Order::After => out.copy_from_slice(&row(index)[columns]),
            },
        );
        let [query, key, value] = self.projections;
        let queries = rows(
            asking.len(),
            &Packed::new(&[query.weight]),
            #[inline(always)]
            |index, out| input(asking[index].row, 0..width, out),
            #[inline(always)]
            |_, first, sums, out| add(sums, &query.bias[first..], out),
        );
        let bias = [key.bias, value.bias].concat();
        let keys_values = rows(
            sequences.rows(),
            &Packed::new(&[key.weight, value.weight]),
            #[inline(always)]
            |index, out| input(index, 0..width, out),
            #[inline(always)]
            |_, first, sums, out| add(sums, &bias[first..], out),
        );
        let attention = Attention {
            sequences,
            heads: self.heads,
            dropout: dropouts[0].as_ref(),
            queries: &queries,
            keys_values: &keys_values,
        };
        let context = attention.context();
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

    /// Gradients, given that of the output.
    pub fn backward(
        &self,
        x: &[f32],
        sequences: &Sequences,
        dropouts: &Dropouts,
        kept: &Kept,
        gradient: &[f32],
    ) -> BlockGradients {
        let Kept { queries, keys_values, context, middle, hidden, end } = kept;
        let width = self.width();
        let asking = sequences.asking();
        let count = asking.len();
        let mut second_norm = [const { Vec::new() }; 2];
        let end = match self.order {
            Order::Before => Cow::Borrowed(gradient),
            Order::After => {
                let (by_end, parameters) = self.second_norm.backward(end, gradient);
                second_norm = parameters;
                Cow::Owned(by_end)
            }
        };

        let outer_gradient = dropped(&dropouts[2], &asking, width, &end);
        let hidden_width = self.inner.weight.columns;
        let hidden_row = |index: usize| &hidden[index * hidden_width..][..hidden_width];
        let hidden_gradient = rows(
            count,
            &Packed::transposed(&[self.outer.weight]),
            #[inline(always)]
            |index, out| out.copy_from_slice(&outer_gradient[index * width..][..width]),
            #[inline(always)]
            |index, first, sums, out| {
                out.copy_from_slice(&hidden_row(index)[first..][..sums.len()]);
                self.activation.backward(out, sums);
            },
        );
        let outer = [
            weight_gradient(
                count,
                [hidden_width, width],
                #[inline(always)]
                |index, columns, out| {
                    out.copy_from_slice(&hidden_row(index)[columns]);
                    self.activation.apply(out);
                },
                part_of(&outer_gradient, width),
            ),
            column_sums(count, width, part_of(&outer_gradient, width)),
        ];
        drop(outer_gradient);

        let norm = self.middle_norm();
        let moments = norm.moments(middle);
        let middle_row = |index: usize| &middle[index * width..][..width];
        let inner = [
            weight_gradient(
                count,
                [width, hidden_width],
                #[inline(always)]
                |index, columns, out| {
                    norm.apply(middle_row(index), moments[index], columns, out);
                },
                part_of(&hidden_gradient, hidden_width),
            ),
            column_sums(count, hidden_width, part_of(&hidden_gradient, hidden_width)),
        ];
        let normed_gradient = rows(
            count,
            &Packed::transposed(&[self.inner.weight]),
            #[inline(always)]
            |index, out| {
                out.copy_from_slice(&hidden_gradient[index * hidden_width..][..hidden_width])
            },
            #[inline(always)]
            |index, first, sums, out| {
                out.copy_from_slice(sums);
                if self.order == Order::After {
                    add_to(out, &end[index * width + first..]);
                }
            },
        );
        drop(hidden_gradient);
        let (mut middle_gradient, middle_norm) = norm.backward(middle, &normed_gradient);
        drop(normed_gradient);
        if self.order == Order::Before {
            add_rows(&mut middle_gradient, &end, width, |index| index);
        }

        let output_gradient = dropped(&dropouts[1], &asking, width, &middle_gradient);
        let by_row = context_rows(sequences, context, self.heads, width);
        let output = [
            weight_gradient(
                count,
                [width, width],
                #[inline(always)]
                |index, columns, out| by_row.fill(index, columns, out),
                part_of(&output_gradient, width),
            ),
            column_sums(count, width, part_of(&output_gradient, width)),
        ];
        let context_gradient = rows(
            count,
            &Packed::transposed(&[self.output.weight]),
            #[inline(always)]
            |index, out| out.copy_from_slice(&output_gradient[index * width..][..width]),
            #[inline(always)]
            |_, _, sums, out| out.copy_from_slice(sums),
        );
        drop(output_gradient);
        let attention = Attention {
            sequences,
            heads: self.heads,
            dropout: dropouts[0].as_ref(),
            queries,
            keys_values,
        };
        let by_head = attention.backward(context, &context_gradient);
        drop(context_gradient);
        let parts = gradient_rows(sequences, &by_head, self.heads, width);

        let moments = self.input_moments(x);
        let row = |index: usize| &x[index * width..][..width];
        let input = of_rows(
            #[inline(always)]
            |index, columns, out| match self.order {
                Order::Before => self.first_norm.apply(row(index), moments[index], columns, out),
                Order::After => out.copy_from_slice(&row(index)[columns]),
            },
        );
        let joined = self.projections[0].weight.stride > width;
        let mut projections: Vec<[Vec<f32>; 2]> = Vec::new();
        for (part, gradients) in parts.iter().enumerate() {
            let count = if part == 0 { count } else { sequences.rows() };
            let right = of_rows(
                #[inline(always)]
                |index, columns, out| gradients.fill(index, columns, out),
            );
            let left = of_rows(
                #[inline(always)]
                |index, columns, out| {
                    let index = if part == 0 { asking[index].row } else { index };
                    input(index, columns, out);
                },
            );
            let bias = column_sums(count, width, right);
            let stride = self.projections[part].weight.stride;
            if part == 0 || !joined {
                projections.push([vec![0.0; width * stride], Vec::new()]);
            }
            if let Some([weights, biases]) = projections.last_mut() {
                let first = self.projections[part].weight.first;
                let out = Columns { values: weights, stride, first };
                across(count, [width, width], left, right, out);
                biases.extend(bias);
            }
        }

        let [query, key, value] = self.projections.map(|part| part.weight);
        let mut input_gradient = match sequences.first_only {
            false => rows(
                sequences.rows(),
                &Packed::transposed(&[query, key, value]),
                #[inline(always)]
                |index, out| {
                    for (part, out) in parts.iter().zip(out.chunks_exact_mut(width)) {
                        part.fill(index, 0..width, out);
                    }
                },
                #[inline(always)]
                |_, _, sums, out| out.copy_from_slice(sums),
            ),
            true => {
                let mut all = rows(
                    sequences.rows(),
                    &Packed::transposed(&[key, value]),
                    #[inline(always)]
                    |index, out| {
                        for (part, out) in parts[1..].iter().zip(out.chunks_exact_mut(width)) {
                            part.fill(index, 0..width, out);
                        }
                    },
                    #[inline(always)]
                    |_, _, sums, out| out.copy_from_slice(sums),
                );
                let asked = rows(
                    count,
                    &Packed::transposed(&[query]),
                    #[inline(always)]
                    |index, out| parts[0].fill(index, 0..width, out),
                    #[inline(always)]
                    |_, _, sums, out| out.copy_from_slice(sums),
                );
                add_rows(&mut all, &asked, width, |index| asking[index].row);
                all
            }
        };
        let mut first_norm = middle_norm;
        if self.order == Order::Before {
            second_norm = first_norm;
            (input_gradient, first_norm) = self.first_norm.backward(x, &input_gradient);
        }
        add_rows(&mut input_gradient, &middle_gradient, width, |index| asking[index].row);
        BlockGradients {
            input: input_gradient,
            projections,
            output,
            first_norm,
            second_norm,
            inner,
            outer,
        }
    }

    /// Moments of the input's rows, where they are normalised.
    fn input_moments(&self, x: &[f32]) -> Vec<(f32, f32)> {
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
fn add_to(out: &mut [f32], values: &[f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}

/// Multiplies values of a row, from column `first` on, by their dropout factors.
#[inline(always)]
fn drop_out(
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

/// All rows times their dropout factors.
fn dropped<'a>(
    dropout: &Option<Dropout>,
    asking: &[Asking],
    width: usize,
    values: &'a [f32],
) -> Cow<'a, [f32]> {
    if dropout.is_none() {
        return Cow::Borrowed(values);
    }
    let mut values = values.to_vec();
    super::norm::each_row(
        &mut values,
        width,
        #[inline(always)]
        |index, row| {
            drop_out(dropout, asking[index], width, 0, row);
        },
    );
    Cow::Owned(values)
}

/// Columns of a row of a matrix.
fn part_of(values: &[f32], width: usize) -> impl Fn(usize, Range<usize>, &mut [f32]) + Sync {
    of_rows(
        #[inline(always)]
        move |index, columns, out| out.copy_from_slice(&values[index * width..][columns]),
    )
}

/// A function that writes columns of a row. What it is given should be inlined always: compiled for
/// itself, it would have no vector instructions.
fn of_rows<F: Fn(usize, Range<usize>, &mut [f32]) + Sync>(function: F) -> F {
    function
}

/// `[left, right]`.
fn weight_gradient(
    count: usize,
    [left_columns, right_columns]: [usize; 2],
    left: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    right: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut values = vec![0.0; left_columns * right_columns];
    let out = Columns { values: &mut values, stride: right_columns, first: 0 };
    across(count, [left_columns, right_columns], left, right, out);
    values
}
