//! Linear layers of evaluation, in floats or in whole numbers.

use std::ops::Range;

use pulp::Simd;

use super::{
    epilogue::Epilogue,
    integer::{IntegerRows, Integers},
    kernel::product,
    packed::{Packed, View},
    rows::Rows,
};

/// Weight and bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub weight: Weight,
    pub bias: Vec<f32>,
}

/// A matrix `[depth, columns]`.
#[derive(Debug)]
pub(super) enum Weight {
    Floats(Packed),
    Integers(Integers),
}

/// Rows that are multiplied by a [`Weight`].
#[derive(Default)]
pub(super) struct Input {
    pub values: Rows,
    rounded: IntegerRows,
}

impl Weight {
    /// Matrices of the same depth, side by side.
    pub fn new(parts: &[View], numbers: Numbers) -> Self {
        match numbers {
            Numbers::Floats => Self::Floats(Packed::new(parts)),
            Numbers::Integers => Self::Integers(Integers::new(parts)),
        }
    }

    pub fn columns(&self) -> usize {
        match self {
            Self::Floats(weight) => weight.columns,
            Self::Integers(weight) => weight.columns,
        }
    }

    /// To be called when the values of `rows` are set, before products with this weight.
    #[inline(always)]
    pub fn prepare<const MR: usize>(&self, rows: &mut Input) {
        if let Self::Integers(_) = self {
            rows.rounded.set::<MR>(&rows.values);
        }
    }

    /// Hands `epilogue` the product of `rows`, whose values were set, and rows of the weight (`depth`),
    /// a tile at a time.
    #[inline(always)]
    pub fn multiply<S: Simd, const MR: usize>(
        &self,
        simd: S,
        rows: &mut Input,
        depth: Range<usize>,
        epilogue: impl Epilogue,
    ) {
        self.prepare::<MR>(rows);
        self.product::<S, MR>(simd, rows, 0..self.columns(), depth, epilogue);
    }

    /// The same of prepared rows and a part of the weight, also of `columns`, whose ends lie between
    /// tiles.
    #[inline(always)]
    pub fn product<S: Simd, const MR: usize>(
        &self,
        simd: S,
        rows: &Input,
        columns: Range<usize>,
        depth: Range<usize>,
        epilogue: impl Epilogue,
    ) {
        match self {
            Self::Floats(weight) => {
                let panels = weight.panels_of(columns);
                product::<S, MR, _>(simd, &rows.values, weight, panels, depth, epilogue);
            }
            Self::Integers(weight) => {
                weight.product::<S, MR>(simd, &rows.rounded, columns, depth, epilogue);
            }
        }
    }
}

/// What evaluation multiplies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Numbers {
    #[default]
    Floats,
    Integers,
}
