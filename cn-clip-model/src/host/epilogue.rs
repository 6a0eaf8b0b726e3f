//! What is done with the sums of a tile while they are in the cache.

use pulp::Simd;

/// Sums of a tile.
pub(super) struct Sums<'a> {
    /// First row.
    pub row: usize,
    /// First column.
    pub column: usize,
    /// Columns that are there; what follows in a row is of no meaning.
    pub columns: usize,
    /// Row by row, `stride` each.
    pub values: &'a mut [f32],
    pub stride: usize,
}

impl Sums<'_> {
    /// The rows and their numbers.
    #[inline(always)]
    pub fn rows(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let rows = self.values.chunks_exact(self.stride).map(|row| &row[..self.columns]);
        (self.row..).zip(rows)
    }
}

/// Takes the tiles of a product.
pub(super) trait Epilogue {
    /// Takes the sums of a tile.
    fn finish<S: Simd>(&mut self, simd: S, sums: Sums);
}

/// Hands `each` the rows of tiles: row, first column, values.
#[inline(always)]
pub(super) fn by_row(each: impl FnMut(usize, usize, &[f32])) -> impl Epilogue {
    EachRow(each)
}

struct EachRow<F>(F);

impl<F: FnMut(usize, usize, &[f32])> Epilogue for EachRow<F> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, sums: Sums) {
        sums.rows().for_each(
            #[inline(always)]
            |(row, values)| (self.0)(row, sums.column, values),
        );
    }
}

/// Writes the product to a matrix of as many columns.
pub(super) struct Set<'a> {
    pub out: &'a mut [f32],
    pub width: usize,
}

impl Epilogue for Set<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, _: S, sums: Sums) {
        for (row, values) in sums.rows() {
            let out = &mut self.out[row * self.width + sums.column..];
            out[..values.len()].copy_from_slice(values);
        }
    }
}

/// Adds the product and perhaps a bias to a matrix of as many columns.
pub(super) struct Add<'a> {
    pub x: &'a mut [f32],
    pub width: usize,
    pub bias: Option<&'a [f32]>,
}

impl Epilogue for Add<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, sums: Sums) {
        for (row, values) in sums.rows() {
            let x = &mut self.x[row * self.width + sums.column..][..values.len()];
            if let Some(bias) = self.bias {
                add(simd, x, &bias[sums.column..][..values.len()]);
            }
            add(simd, x, values);
        }
    }
}

/// Adds vector by vector: a tile's row is too short for the loop that compilers make for long ones.
#[inline(always)]
fn add<S: Simd>(simd: S, x: &mut [f32], values: &[f32]) {
    let ((x, end), (values, end_of_values)) = (S::as_mut_simd_f32s(x), S::as_simd_f32s(values));
    x.iter_mut().zip(values).for_each(|(x, value)| *x = simd.add_f32s(*x, *value));
    end.iter_mut().zip(end_of_values).for_each(|(x, value)| *x += value);
}
