//! Gradients of a transformer layer.

use std::{borrow::Cow, ops::Range};

use super::{
    block::{Block, Dropouts, Kept, add_to, drop_out},
    layer::Order,
    norm::{add_rows, each_row},
    packed::Packed,
    product::{Columns, across, rows},
    sequences::{Asking, ByHead, Sequences, context_rows, gradient_rows},
};
use crate::random::Dropout;

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
    /// Gradients, given that of the output.
    pub fn backward(
        &self,
        x: &[f32],
        sequences: &Sequences,
        dropouts: &Dropouts,
        kept: Kept,
        gradient: Cow<'_, [f32]>,
    ) -> BlockGradients {
        let Kept { queries, keys_values, context, middle, hidden, end } = kept;
        let width = self.width();
        let asking = sequences.asking();
        let count = asking.len();
        let mut second_norm = [const { Vec::new() }; 2];
        let end = match self.order {
            Order::Before => gradient,
            Order::After => {
                let norm = self.second_norm;
                let (by_end, parameters) =
                    norm.backward(&end, &norm.moments(&end), &gradient, None);
                second_norm = parameters;
                drop((end, gradient));
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
        let outer = linear_gradient(
            count,
            [hidden_width, width],
            #[inline(always)]
            |index, columns, out| {
                out.copy_from_slice(&hidden_row(index)[columns]);
                self.activation.apply(out);
            },
            &outer_gradient,
        );
        drop(outer_gradient);
        drop(hidden);

        let norm = self.middle_norm();
        let moments = norm.moments(&middle);
        let middle_row = |index: usize| &middle[index * width..][..width];
        let inner = linear_gradient(
            count,
            [width, hidden_width],
            #[inline(always)]
            |index, columns, out| norm.apply(middle_row(index), moments[index], columns, out),
            &hidden_gradient,
        );
        let normed_gradient = rows(
            count,
            &Packed::transposed(&[self.inner.weight]),
            #[inline(always)]
            |index, out| {
                out.copy_from_slice(&hidden_gradient[index * hidden_width..][..hidden_width]);
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
        let residual = (self.order == Order::Before).then_some(&*end);
        let (middle_gradient, middle_norm) =
            norm.backward(&middle, &moments, &normed_gradient, residual);
        drop((normed_gradient, middle, end));

        let output_gradient = dropped(&dropouts[1], &asking, width, &middle_gradient);
        let by_row = context_rows(sequences, &context, self.heads, width);
        let output = linear_gradient(
            count,
            [width, width],
            #[inline(always)]
            |index, columns, out| by_row.fill(index, columns, out),
            &output_gradient,
        );
        let context_gradient = rows(
            count,
            &Packed::transposed(&[self.output.weight]),
            #[inline(always)]
            |index, out| out.copy_from_slice(&output_gradient[index * width..][..width]),
            #[inline(always)]
            |_, _, sums, out| out.copy_from_slice(sums),
        );
        drop(output_gradient);
        let attention = self.attention(sequences, dropouts, &queries, &keys_values);
        let by_head = attention.backward(&context, &context_gradient);
        drop((context_gradient, by_row));
        drop((queries, keys_values, context));

        let moments = self.input_moments(x);
        let parts = gradient_rows(sequences, &by_head, self.heads, width);
        let projections = self.projection_gradients(x, &moments, sequences, &asking, &parts);
        let mut input_gradient =
            self.normed_input_gradient(sequences, &asking, &parts, &middle_gradient);
        drop(parts);
        drop(by_head);
        let mut first_norm = middle_norm;
        if self.order == Order::Before {
            second_norm = first_norm;
            let residual = (!sequences.first_only).then_some(&*middle_gradient);
            (input_gradient, first_norm) =
                self.first_norm.backward(x, &moments, &input_gradient, residual);
        }
        if sequences.first_only {
            add_rows(&mut input_gradient, &middle_gradient, width, |index| asking[index].row);
        }
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

    /// Gradients of the projections' parameters.
    fn projection_gradients(
        &self,
        x: &[f32],
        moments: &[(f32, f32)],
        sequences: &Sequences,
        asking: &[Asking],
        parts: &[ByHead<'_>; 3],
    ) -> Vec<[Vec<f32>; 2]> {
        let width = self.width();
        let joined = self.projections[0].weight.stride > width;
        let mut projections: Vec<[Vec<f32>; 2]> = Vec::new();
        for (part, gradients) in parts.iter().enumerate() {
            let count = if part == 0 { asking.len() } else { sequences.rows() };
            let stride = self.projections[part].weight.stride;
            if part == 0 || !joined {
                projections.push([vec![0.0; width * stride], Vec::new()]);
            }
            if let Some([weights, biases]) = projections.last_mut() {
                let first = self.projections[part].weight.first;
                let out = Columns { values: weights, stride, first };
                biases.extend(across(
                    count,
                    [width, width],
                    #[inline(always)]
                    |index, columns, out| {
                        let index = if part == 0 { asking[index].row } else { index };
                        self.fill_input(x, moments, index, columns, out);
                    },
                    #[inline(always)]
                    |index, columns, out| gradients.fill(index, columns, out),
                    out,
                ));
            }
        }
        projections
    }

    /// Gradient of what is projected; where the input is that, with the gradient of the residual,
    /// unless only the first rows ask.
    fn normed_input_gradient(
        &self,
        sequences: &Sequences,
        asking: &[Asking],
        parts: &[ByHead<'_>; 3],
        residual: &[f32],
    ) -> Vec<f32> {
        let width = self.width();
        let [query, key, value] = self.projections.map(|part| part.weight);
        if !sequences.first_only {
            return rows(
                sequences.rows(),
                &Packed::transposed(&[query, key, value]),
                #[inline(always)]
                |index, out| {
                    for (part, out) in parts.iter().zip(out.chunks_exact_mut(width)) {
                        part.fill(index, 0..width, out);
                    }
                },
                #[inline(always)]
                |index, first, sums, out| {
                    out.copy_from_slice(sums);
                    if self.order == Order::After {
                        add_to(out, &residual[index * width + first..]);
                    }
                },
            );
        }
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
            asking.len(),
            &Packed::transposed(&[query]),
            #[inline(always)]
            |index, out| parts[0].fill(index, 0..width, out),
            #[inline(always)]
            |_, _, sums, out| out.copy_from_slice(sums),
        );
        add_rows(&mut all, &asked, width, |index| asking[index].row);
        all
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
    let mut out = vec![0.0; values.len()];
    each_row(
        &mut out,
        width,
        #[inline(always)]
        |index, row| {
            row.copy_from_slice(&values[index * width..][..width]);
            drop_out(dropout, asking[index], width, 0, row);
        },
    );
    Cow::Owned(out)
}

/// Gradients of weight `[left, right]` and bias; `gradient` is that of the output's rows.
fn linear_gradient(
    count: usize,
    [left_columns, right_columns]: [usize; 2],
    left: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    gradient: &[f32],
) -> [Vec<f32>; 2] {
    let mut values = vec![0.0; left_columns * right_columns];
    let out = Columns { values: &mut values, stride: right_columns, first: 0 };
    let bias = across(
        count,
        [left_columns, right_columns],
        left,
        #[inline(always)]
        |index, columns, out| out.copy_from_slice(&gradient[index * right_columns..][columns]),
        out,
    );
    [values, bias]
}
