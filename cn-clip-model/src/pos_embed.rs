//! Positional embeddings for another resolution.
//!
//! The embedding of the class token stays. Those of the grid are interpolated as the Python program
//! does: bicubic with coefficient -0.75, corners on corners, without antialiasing
//! (`resize_pos_embed` in `cn_clip/clip/utils.py`).

use std::array;

/// Coefficient of the cubic kernel, that of `torch.nn.functional.interpolate`.
const CUBIC: f64 = -0.75;

/// Side of the grid of a positional embedding with a class token and `tokens` rows in all; `None`
/// if they form no square.
pub fn grid_of(tokens: usize) -> Option<usize> {
    let cells = tokens.checked_sub(1).filter(|cells| *cells > 0)?;
    let side = cells.isqrt();
    (side * side == cells).then_some(side)
}

/// Resizes the grid of a positional embedding `[1 + old * old, width]`, row-major, to
/// `[1 + new * new, width]`.
pub fn resize(values: &[f32], width: usize, old: usize, new: usize) -> Vec<f32> {
    let (class, grid) = values.split_at(width);
    let taps: Vec<[(usize, f64); 4]> = (0..new).map(|index| taps(index, old, new)).collect();
    let mut out = class.to_vec();
    out.reserve(new * new * width);
    for rows in &taps {
        for columns in &taps {
            let mut cell = vec![0.0f64; width];
            for (row, row_weight) in rows {
                for (column, column_weight) in columns {
                    let from = &grid[(row * old + column) * width..][..width];
                    let weight = row_weight * column_weight;
                    for (sum, value) in cell.iter_mut().zip(from) {
                        *sum += weight * f64::from(*value);
                    }
                }
            }
            out.extend(cell.iter().map(|value| *value as f32));
        }
    }
    out
}

/// The four old positions that make up a new one, clamped to the grid, and their weights.
fn taps(index: usize, old: usize, new: usize) -> [(usize, f64); 4] {
    let scale = if new > 1 { (old - 1) as f64 / (new - 1) as f64 } else { 0.0 };
    let position = scale * index as f64;
    let first = position.floor();
    let fraction = position - first;
    let near = |x: f64| ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((CUBIC * x - 5.0 * CUBIC) * x + 8.0 * CUBIC) * x - 4.0 * CUBIC;
    let weights = [far(fraction + 1.0), near(fraction), near(1.0 - fraction), far(2.0 - fraction)];
    array::from_fn(|tap| {
        let at = first as isize - 1 + tap as isize;
        (at.clamp(0, old as isize - 1) as usize, weights[tap])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_changes_nothing() {
        let values: Vec<f32> = (0..10 * 3).map(|index| (index as f32).sin()).collect();
        assert_eq!(resize(&values, 3, 3, 3), values);
    }

    #[test]
    fn grids_are_squares() {
        assert_eq!(grid_of(197), Some(14));
        assert_eq!([0, 1, 3, 198].map(grid_of), [None; 4]);
    }
}
