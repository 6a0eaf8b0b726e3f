//! The loss of 65,536 pairs in little memory. Alone in its process, whose peak is measured.

#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use burn::tensor::{Device, Tensor, TensorData};
use cn_clip_model::normalize;
use cn_clip_train::{
    loss::{Gathered, tile_columns},
    metrics::peak_memory_mib,
};

const PAIRS: usize = 65_536;
const WIDTH: usize = 512;
/// Pairs of this rank.
const OWN: usize = 256;
const FIRST: usize = 3 * OWN;
const SCALE: f32 = 50.0;

fn features(seed: u64) -> Tensor<2> {
    let mut state = seed;
    let values = (0..PAIRS * WIDTH).map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    });
    let data = TensorData::new(values.collect::<Vec<_>>(), [PAIRS, WIDTH]);
    normalize(Tensor::from_data(data, &Device::default()))
}

fn rows(features: &Tensor<2>, from: usize, to: usize) -> Vec<f32> {
    features.clone().slice_dim(0, from..to).into_data().try_into_vec().unwrap()
}

/// Similarities of one row with all columns.
fn similarities(row: &[f32], columns: &[f32]) -> Vec<f64> {
    let dot = |column: &[f32]| row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
    columns.chunks(WIDTH).map(|column| f64::from(SCALE * dot(column))).collect()
}

#[test]
fn a_rank_of_65536_pairs_stays_far_below_the_full_matrix() {
    let (image, text) = (features(1), features(2));
    let view = Gathered { image, text, first: FIRST, count: OWN };
    let tile = tile_columns(OWN);
    let local = view.statistics(SCALE, tile);
    // Of the other ranks' texts: what a log-sum-exp may be.
    let mut others = vec![12.5f32; PAIRS];
    let own: Vec<f32> = local.text_rows.clone().into_data().try_into_vec().unwrap();
    others[FIRST..FIRST + OWN].copy_from_slice(&own);
    let all_text =
        Tensor::from_data(TensorData::new(others.clone(), [PAIRS, 1]), &Device::default());
    let gradient = view.gradient(&local, &all_text, &all_text, SCALE, tile);
    let peak = peak_memory_mib().unwrap();
    // The full matrix alone would be 16 GiB; the features are 256 MiB.
    assert!(peak < 1536.0, "{peak:.0} MiB");

    // A few rows by the definition.
    let texts = rows(&view.text, 0, PAIRS);
    for own in [0, OWN / 2, OWN - 1] {
        let at = FIRST + own;
        let scores = similarities(&rows(&view.image, at, at + 1), &texts);
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        let found = f64::from(rows(&local.image_rows, own, own + 1)[0]);
        assert!((found - sum.ln()).abs() < 1e-5 * sum.ln(), "{found} {}", sum.ln());
        let mut expected = vec![0.0f64; WIDTH];
        for (column, score) in scores.iter().enumerate() {
            let diagonal = if column == at { 2.0 } else { 0.0 };
            let share = score.exp() / sum + (score - f64::from(others[column])).exp() - diagonal;
            let text = &texts[column * WIDTH..(column + 1) * WIDTH];
            expected.iter_mut().zip(text).for_each(|(sum, x)| *sum += share * f64::from(*x));
        }
        let factor = f64::from(SCALE) / (2.0 * PAIRS as f64);
        let found = rows(&gradient.image, own, own + 1);
        let largest = expected.iter().fold(0.0f64, |most, x| most.max((factor * x).abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - factor * expected).abs() < 1e-4 * largest);
        }
    }
}
