//! Products of matrices in ordinary memory, by the kernels that the CPU backend uses.
//!
//! They take slices as they are, where a tensor would need a copy of each.

use gemm::Parallelism;

/// A matrix that a slice holds, possibly transposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a, T: Copy + 'static> Matrix<'a, T> {
    /// `data` row by row; its length is a multiple of `columns`, which is not 0.
    pub(crate) fn new(data: &'a [T], columns: usize) -> Self {
        let rows = data.len() / columns;
        assert_eq!(data.len(), rows * columns, "whole rows");
        Self { data, rows, columns, row_stride: columns as isize, column_stride: 1 }
    }

    /// Rows as columns.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Writes `left` times `right` to `product`, `[left.rows, right.columns]` row by row, on the calling
/// thread. `T` is `f32` or `f64`.
pub(crate) fn multiply<T: Copy + From<f32> + 'static>(
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    product: &mut [T],
) {
    assert_eq!(left.columns, right.rows, "inner sizes");
    assert_eq!(product.len(), left.rows * right.columns, "size of the product");
    // SAFETY: rows, columns and strides of the operands are those of their slices (`Matrix::new`,
    // which `transposed` only swaps); the product has room for its rows, each `right.columns` long,
    // and is borrowed alone.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            product.as_mut_ptr(),
            1,
            right.columns as isize,
            false,
            left.data.as_ptr(),
            left.column_stride,
            left.row_stride,
            right.data.as_ptr(),
            right.column_stride,
            right.row_stride,
            T::from(0.0),
            T::from(1.0),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_matrices_and_their_transposes() {
        let left = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 x 3
        let right = [1.0, 0.0, 0.0, 1.0, 2.0, -1.0]; // 3 x 2
        let mut product = [f64::NAN; 4];
        multiply(Matrix::new(&left, 3), Matrix::new(&right, 2), &mut product);
        assert_eq!(product, [7.0, -1.0, 16.0, -1.0]);
        // The same right side, stored by columns.
        let columns = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0];
        multiply(Matrix::new(&left, 3), Matrix::new(&columns, 3).transposed(), &mut product);
        assert_eq!(product, [7.0, -1.0, 16.0, -1.0]);
        let mut square = [f64::NAN; 9];
        multiply(Matrix::new(&left, 3).transposed(), Matrix::new(&left, 3), &mut square);
        assert_eq!(square, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }

    #[test]
    fn large_products_in_both_precisions() {
        let (rows, inner, columns) = (67, 129, 45);
        let value = |i: usize| ((i * 37 % 101) as f64 - 50.0) / 64.0;
        let left: Vec<f64> = (0..rows * inner).map(value).collect();
        let right: Vec<f64> = (0..inner * columns).map(|i| value(i + 13)).collect();
        let mut found = vec![0.0; rows * columns];
        multiply(Matrix::new(&left, inner), Matrix::new(&right, columns), &mut found);
        let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let mut single = vec![0.0_f32; rows * columns];
        let (a, b) = (narrow(&left), narrow(&right));
        multiply(Matrix::new(&a, inner), Matrix::new(&b, columns), &mut single);
        for row in 0..rows {
            for column in 0..columns {
                let terms = (0..inner).map(|i| left[row * inner + i] * right[i * columns + column]);
                let expected: f64 = terms.sum();
                assert!((found[row * columns + column] - expected).abs() < 1e-12);
                assert!((f64::from(single[row * columns + column]) - expected).abs() < 1e-4);
            }
        }
    }

    #[test]
    #[should_panic(expected = "inner sizes")]
    fn sizes_must_fit() {
        multiply(Matrix::new(&[1.0, 2.0], 2), Matrix::new(&[1.0], 1), &mut [0.0]);
    }
}
