//! Exact search: the `k` candidates with the largest inner product for each query.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use burn::tensor::Device;
use rayon::prelude::*;

use crate::features::FeatureSource;
use crate::scores::{Row, Scan, ScoreError};

/// Candidates found, of all queries together, that are held at a time: 64 MiB.
const HELD: usize = 1 << 22;
/// Scores that are looked at together.
const LOOK: usize = 64;

/// A candidate found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Row of the candidate.
    pub index: usize,
    /// Inner product with the query, computed in double precision.
    pub score: f64,
}

impl Neighbour {
    /// Whether this one ranks before `other`: larger score, or equal score and earlier row.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        self.score > other.score || (self.score == other.score && self.index < other.index)
    }
}

/// Orders the worst of a heap to its top.
#[derive(PartialEq)]
struct WorstFirst(Neighbour);

impl Eq for WorstFirst {}

impl PartialOrd for WorstFirst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for WorstFirst {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.score.total_cmp(&self.0.score).then(self.0.index.cmp(&other.0.index))
    }
}

/// Ranks candidates for every query: result `[queries][at most k]`, best first.
///
/// Equal scores keep the order of the candidates' rows. With fewer than `k` candidates the lists are
/// shorter. The result does not depend on `block`, the number of candidates held at a time, nor on
/// the device. Same ranking as the reference's `make_topk_predictions.py`, whose scores are single
/// precision, but for swaps between scores that differ by less than that rounds off.
///
/// # Errors
/// [`ScoreError`] if the sizes of the features differ, `k` or `block` is 0, features cannot be read,
/// or the device fails.
pub fn top_k(
    queries: &dyn FeatureSource,
    candidates: &dyn FeatureSource,
    k: usize,
    block: usize,
    device: &Device,
) -> Result<Vec<Vec<Neighbour>>, ScoreError> {
    let mut all = Vec::with_capacity(queries.rows());
    for_each_top_k(queries, candidates, k, block, device, |_, found| {
        all.extend(found);
        Ok::<(), ScoreError>(())
    })?;
    Ok(all)
}

/// As [`top_k`], but hands `sink` the rankings of some queries at a time, in their order, with the
/// row of the first: memory does not grow with the number of queries.
///
/// # Errors
/// As [`top_k`], and those of `sink`.
pub fn for_each_top_k<E: From<ScoreError>>(
    queries: &dyn FeatureSource,
    candidates: &dyn FeatureSource,
    k: usize,
    block: usize,
    device: &Device,
    mut sink: impl FnMut(usize, Vec<Vec<Neighbour>>) -> Result<(), E>,
) -> Result<(), E> {
    if k == 0 {
        return Err(ScoreError::ZeroK.into());
    }
    let k = k.min(candidates.rows());
    let sorted = |heap: BinaryHeap<WorstFirst>| {
        heap.into_sorted_vec().into_iter().map(|WorstFirst(neighbour)| neighbour).collect()
    };
    Scan { queries, candidates, block, device }.run(
        HELD / k,
        |_| BinaryHeap::with_capacity(k),
        |heap, row| offer(heap, k, row),
        |first, heaps| sink(first, heaps.into_par_iter().map(sorted).collect()),
    )
}

/// Takes the scores of a row that are among the best `k` so far.
fn offer(heap: &mut BinaryHeap<WorstFirst>, k: usize, row: &Row<'_>) {
    // Nothing below it can be among the best; NaN, where single precision overflows, may be.
    let floor = |heap: &BinaryHeap<WorstFirst>| match heap.peek() {
        Some(worst) if heap.len() == k => ((worst.0.score - row.bound) as f32).next_down(),
        _ => f32::NEG_INFINITY,
    };
    let mut below = floor(heap);
    let mut offset = 0;
    for part in row.scores.chunks(LOOK) {
        // Without a branch, hence many at a time; hardly any part has something to find.
        if part.iter().fold(true, |all, &score| all & (score < below)) {
            offset += part.len();
            continue;
        }
        for &score in part {
            if score < below {
                offset += 1;
                continue;
            }
            let found = Neighbour { index: row.first + offset, score: row.exact(offset) };
            offset += 1;
            if heap.len() < k {
                heap.push(WorstFirst(found));
            } else if let Some(mut worst) = heap.peek_mut()
                && found.precedes(&worst.0)
            {
                *worst = WorstFirst(found);
            } else {
                continue;
            }
            below = floor(heap);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::features::{Features, Modality};
    use crate::scores::exact;
    use cn_clip_data::Id;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval").join(name)
    }

    fn features(rows: &[&[f32]]) -> Features {
        let ids = (0..rows.len() as i64).map(Id::Int).collect();
        Features::new(ids, rows[0].len(), rows.concat()).unwrap()
    }

    fn indices(found: &[Vec<Neighbour>]) -> Vec<Vec<usize>> {
        found.iter().map(|list| list.iter().map(|hit| hit.index).collect()).collect()
    }

    /// The rankings of a reference file, as rows of `candidates`.
    fn golden(name: &str, key: &str, candidates: &Features) -> Vec<Vec<usize>> {
        let text = std::fs::read_to_string(fixture(name)).unwrap();
        let row = |id: &serde_json::Value| {
            let id = Id::Int(id.as_i64().unwrap());
            candidates.ids().iter().position(|other| *other == id).unwrap()
        };
        let list = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line[key].as_array().unwrap().iter().map(row).collect()
        };
        text.lines().map(list).collect()
    }

    /// Apart from swaps that single precision explains; with blocks of 7 the reference's product even
    /// scores equal vectors differently by their place in the block, and so swaps duplicates.
    #[test]
    fn rankings_are_the_references() {
        let images = Features::read(&fixture("valid_imgs.img_feat.jsonl"), Modality::Image);
        let texts = Features::read(&fixture("valid_texts.txt_feat.jsonl"), Modality::Text);
        let (images, texts) = (images.unwrap(), texts.unwrap());
        for (name, key, queries, candidates) in [
            ("valid_predictions", "image_ids", &texts, &images),
            ("valid_tr_predictions", "text_ids", &images, &texts),
        ] {
            for (suffix, k, block) in [("", 10, 32_768), (".k5_bs7", 5, 7)] {
                let expected = golden(&format!("{name}{suffix}.jsonl"), key, candidates);
                let found = top_k(queries, candidates, k, block, &Device::default()).unwrap();
                assert_eq!(found.len(), expected.len());
                for (query, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found.len(), expected.len());
                    for (hit, &other) in found.iter().zip(expected) {
                        let score = exact(queries.row(query), candidates.row(other));
                        assert!(hit.index == other || (hit.score - score).abs() < 1e-6);
                    }
                    assert!(found.is_sorted_by(|a, b| a.precedes(b)));
                }
            }
        }
    }

    #[test]
    fn result_equals_a_full_sort_for_every_block_and_k() {
        let value = |i: usize| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * 0.3;
        let rows: Vec<Vec<f32>> =
            (0..97).map(|r| (0..12).map(|c| value((r % 40) * 12 + c)).collect()).collect();
        let all = features(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for k in [1, 3, 10, 97, 500] {
            let mut expected: Vec<Vec<usize>> = Vec::new();
            for query in 0..97 {
                let mut order: Vec<usize> = (0..97).collect();
                let score = |&row: &usize| exact(all.row(query), all.row(row));
                order.sort_by(|a, b| score(b).total_cmp(&score(a)));
                order.truncate(k);
                expected.push(order);
            }
            for block in [1, 2, 13, 96, 97, 1000] {
                let found = top_k(&all, &all, k, block, &Device::default()).unwrap();
                assert_eq!(indices(&found), expected, "k {k} block {block}");
            }
            // Thousands of queries come in parts.
            let repeated = features(
                &rows.iter().cycle().take(97 * 180).map(Vec::as_slice).collect::<Vec<_>>(),
            );
            let mut next = 0;
            for_each_top_k(&repeated, &all, k, 97, &Device::default(), |first, found| {
                assert_eq!(first, next);
                for (query, list) in indices(&found).iter().enumerate() {
                    assert_eq!(list, &expected[(first + query) % 97]);
                }
                next += found.len();
                Ok::<(), ScoreError>(())
            })
            .unwrap();
            assert_eq!(next, 97 * 180);
        }
    }

    #[test]
    fn equal_scores_keep_file_order_across_blocks() {
        let same: &[f32] = &[0.1, 0.2, 0.3];
        let candidates = features(&[&[0.0, 0.0, -1.0], same, same, &[1.0, 1.0, 1.0], same, same]);
        for block in 1..=6 {
            let found =
                top_k(&features(&[same]), &candidates, 4, block, &Device::default()).unwrap();
            assert_eq!(indices(&found), [[3, 1, 2, 4]], "block {block}");
        }
        // Zeros of either sign are equal.
        let zeros = features(&[&[0.0, -1.0], &[0.0, 1.0], &[0.0, -2.0]]);
        let found = top_k(&features(&[&[1.0, -0.0]]), &zeros, 3, 2, &Device::default()).unwrap();
        assert_eq!(indices(&found), [[0, 1, 2]]);
    }

    #[test]
    fn differences_below_single_precision_still_count() {
        let query = features(&[&[1.0, 1.0]]);
        let candidates = features(&[&[1.0, 0.0], &[1.0, 1e-9], &[1.0, -1e-9], &[0.5, 0.5]]);
        let found = top_k(&query, &candidates, 4, 8, &Device::default()).unwrap();
        assert_eq!(indices(&found), [[1, 0, 3, 2]]);
    }

    #[test]
    fn huge_values_are_ranked_where_single_precision_overflows() {
        let query = features(&[&[1e30, 1e30]]);
        let candidates = features(&[&[1e30, -1e30], &[-1e30, 1e20], &[1e30, 1e30]]);
        let found = top_k(&query, &candidates, 2, 1, &Device::default()).unwrap();
        assert_eq!(indices(&found), [[2, 0]]);
    }

    #[test]
    fn zero_k_and_other_dimensions_are_errors() {
        let (two, three) = (features(&[&[1.0, 2.0]]), features(&[&[1.0, 2.0, 3.0]]));
        let device = Device::default();
        assert!(matches!(top_k(&two, &two, 0, 1, &device), Err(ScoreError::ZeroK)));
        assert!(matches!(top_k(&two, &two, 1, 0, &device), Err(ScoreError::ZeroBlock)));
        assert!(matches!(top_k(&two, &three, 1, 1, &device), Err(ScoreError::Dimension { .. })));
    }
}
