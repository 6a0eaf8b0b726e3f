//! Inner products of queries and candidates, in two steps that search and recall share.
//!
//! The device multiplies whole tiles; that is where the time goes. Its rounding depends on the
//! device, the driver and the shape of the tile (CUDA may even take TF32), so a tile only tells
//! which pairs are worth a look: [`error_bounds`] says how far it can be off, and pairs nearer to a
//! decision than that are settled by [`exact`], a dot product in doubles on the CPU. So rankings,
//! ties included, are the same on every device and with every block size.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;
use thiserror::Error;

use crate::features::Features;

/// Candidates scored at a time, unless told otherwise (`--eval-batch-size`).
pub const DEFAULT_BLOCK: usize = 32_768;

/// Values of one tile of scores at most: 64 MiB.
const TILE_VALUES: usize = 1 << 24;

/// Why queries and candidates cannot be compared.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// The features have come from different models.
    #[error(
        "queries have {queries} values and candidates {candidates}; extract both with the same model"
    )]
    Dimension {
        /// Values of a query.
        queries: usize,
        /// Values of a candidate.
        candidates: usize,
    },
    /// `--top-k 0`.
    #[error("top-k must be at least 1")]
    ZeroK,
    /// `--eval-batch-size 0`.
    #[error("eval-batch-size must be at least 1")]
    ZeroBlock,
    /// The device failed, most often for want of memory.
    #[error("the device cannot compute scores ({0}); try a smaller eval-batch-size")]
    Device(String),
    /// An annotation names a text or a picture that has no feature.
    #[error("{key} {id} of the annotations has no feature; extract the features of the same split")]
    UnknownId {
        /// `text_id` or `image_id`.
        key: &'static str,
        /// The id.
        id: String,
    },
    /// No annotation leaves anything to search for.
    #[error("no text of the annotations has a picture: there is nothing to score")]
    NoQueries,
}

/// A rectangle of approximate scores, `[queries.len(), candidates.len()]` row by row.
pub(crate) struct Tile {
    pub(crate) queries: Range<usize>,
    pub(crate) candidates: Range<usize>,
    pub(crate) scores: Vec<f32>,
}

/// Visits all tiles; for each query, candidates come in ascending order.
///
/// At most `block` candidates are on the device at a time.
pub(crate) fn for_each_tile(
    queries: &Features,
    candidates: &Features,
    block: usize,
    device: &Device,
    mut visit: impl FnMut(Tile),
) -> Result<(), ScoreError> {
    let dim = candidates.dim();
    if queries.dim() != dim {
        return Err(ScoreError::Dimension { queries: queries.dim(), candidates: dim });
    }
    if block == 0 {
        return Err(ScoreError::ZeroBlock);
    }
    let upload = |features: &Features, rows: &Range<usize>| {
        let values = features.data()[rows.start * dim..rows.end * dim].to_vec();
        let data = TensorData::new(values, [rows.len(), dim]);
        Tensor::<2>::from_data(data, (device, DType::F32))
    };
    for candidate_rows in blocks(candidates.rows(), block) {
        let right = upload(candidates, &candidate_rows).transpose();
        let query_block = (TILE_VALUES / candidate_rows.len()).max(1);
        for query_rows in blocks(queries.rows(), query_block) {
            let product = upload(queries, &query_rows).matmul(right.clone());
            let failed = |error: &dyn std::fmt::Display| ScoreError::Device(error.to_string());
            let data = product.try_into_data().map_err(|error| failed(&error))?;
            let scores = data.try_into_vec::<f32>().map_err(|error| failed(&error))?;
            visit(Tile { queries: query_rows, candidates: candidate_rows.clone(), scores });
        }
    }
    Ok(())
}

fn blocks(rows: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(block).map(move |start| start..rows.min(start.saturating_add(block)))
}

/// Inner product in doubles; the same two vectors give the same bits everywhere.
///
/// A negative zero comes out as a positive one, so that equal scores compare equal.
pub(crate) fn exact(left: &[f32], right: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (left_chunks, right_chunks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let tail: f64 = left_chunks
        .remainder()
        .iter()
        .zip(right_chunks.remainder())
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum();
    for (a, b) in left_chunks.zip(right_chunks) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + tail + 0.0
}

/// How far a tile's score of a query can be from [`exact`], per query.
///
/// Operands cut to TF32 (10 bits of fraction) err by 2^-10 each; summation in single precision adds
/// at most `dim` units of 2^-23; both relative to the product of the norms. The last term covers
/// results flushed to zero. Infinite, so that everything is settled exactly, where single precision
/// may overflow.
pub(crate) fn error_bounds(queries: &Features, candidates: &Features) -> Vec<f64> {
    let norm = |row: &[f32]| exact(row, row).sqrt();
    let longest =
        candidates.data().par_chunks_exact(candidates.dim()).map(norm).reduce(|| 0.0, f64::max);
    let dim = candidates.dim() as f64;
    let relative = 2.0_f64.powi(-9) + dim * 2.0_f64.powi(-22);
    let bound = |row: &[f32]| match norm(row) * longest {
        product if product < 1e37 => relative * product + dim * f64::from(f32::MIN_POSITIVE),
        _ => f64::INFINITY,
    };
    queries.data().par_chunks_exact(queries.dim()).map(bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cn_clip_data::Id;

    fn features(rows: usize, dim: usize, value: impl Fn(usize) -> f32) -> Features {
        let ids = (0..rows as i64).map(Id::Int).collect();
        Features::new(ids, dim, (0..rows * dim).map(value).collect()).unwrap()
    }

    #[test]
    fn exact_products_keep_what_single_precision_loses() {
        let left: Vec<f32> = (0..19).map(|i| if i == 3 { 1e8 } else { 1.0 }).collect();
        let right: Vec<f32> = (0..19).map(|i| if i == 4 { -1e8 } else { 1.0 }).collect();
        assert_eq!(exact(&left, &right), 17.0);
        assert_eq!(exact(&[-1.0], &[0.0]).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn tiles_cover_everything_once_and_stay_within_the_bound() {
        let wave = |i: usize| (i as f32 * 0.7).sin();
        let (queries, candidates) = (features(5, 33, wave), features(23, 33, wave));
        let bounds = error_bounds(&queries, &candidates);
        for block in [1, 7, 23, usize::MAX] {
            let mut seen = vec![0; 5 * 23];
            for_each_tile(&queries, &candidates, block, &Device::default(), |tile| {
                assert!(tile.candidates.len() <= block);
                let width = tile.candidates.len();
                for (q, row) in tile.queries.zip(tile.scores.chunks(width)) {
                    for (c, &score) in tile.candidates.clone().zip(row) {
                        seen[q * 23 + c] += 1;
                        let difference =
                            f64::from(score) - exact(queries.row(q), candidates.row(c));
                        assert!(difference.abs() <= bounds[q]);
                    }
                }
            })
            .unwrap();
            assert!(seen.iter().all(|&times| times == 1), "block {block}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let (left, right) = (features(2, 3, |_| 1.0), features(2, 4, |_| 1.0));
        let run = |left, right, block| {
            for_each_tile(left, right, block, &Device::default(), |_| {}).unwrap_err()
        };
        assert!(matches!(
            run(&left, &right, 8),
            ScoreError::Dimension { queries: 3, candidates: 4 }
        ));
        assert!(matches!(run(&left, &left, 0), ScoreError::ZeroBlock));
    }
}
