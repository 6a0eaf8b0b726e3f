//! Recall of both directions of retrieval, from features.

mod confidence;

use std::collections::HashMap;

use burn::tensor::Device;
use serde::Serialize;

use crate::features::{FeatureSource, Modality};
use crate::knn::Neighbour;
use crate::scores::{Row, Scan, ScoreError, exact};
use cn_clip_data::Id;

pub use confidence::{Bootstrap, Interval, Intervals};

/// How well the candidates of one direction are found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RecallReport {
    /// Percent of queries with a true candidate ranked first.
    pub r1: f64,
    /// The same among the first five.
    pub r5: f64,
    /// The same among the first ten.
    pub r10: f64,
    /// Mean of the three.
    pub mean_recall: f64,
    /// Median over queries of the rank (from 1) of the best true candidate.
    pub median_rank: f64,
    /// Number of queries scored.
    pub queries: usize,
}

/// Both directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RetrievalReport {
    /// Texts search pictures.
    pub text_to_image: RecallReport,
    /// Pictures search texts.
    pub image_to_text: RecallReport,
}

/// Ranks, from 1, of the best true candidate of every query that has one, at least one query.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    /// Of the texts, among the pictures.
    pub text_to_image: Vec<usize>,
    /// Of the pictures, among the texts.
    pub image_to_text: Vec<usize>,
}

impl Ranks {
    /// Ranks `image` for every text and `text` for every picture.
    ///
    /// `positives` lists each text with the pictures it belongs to. Ranks are those of
    /// [`crate::knn::top_k`]: equal scores keep row order. Texts without pictures, and pictures no
    /// text names, are candidates but no queries.
    ///
    /// # Errors
    /// [`ScoreError::UnknownId`] for an id without a feature, [`ScoreError::NoQueries`] if no text
    /// has a picture, and those of the search.
    pub fn new(
        image: &dyn FeatureSource,
        text: &dyn FeatureSource,
        positives: &[(Id, Vec<Id>)],
        block: usize,
        device: &Device,
    ) -> Result<Self, ScoreError> {
        let (image_rows, text_rows) = (row_numbers(image.ids()), row_numbers(text.ids()));
        let mut images_of_text = vec![Vec::new(); text.rows()];
        let mut texts_of_image = vec![Vec::new(); image.rows()];
        for (text_id, image_ids) in positives {
            let text_row = find(&text_rows, text_id, Modality::Text)?;
            for image_id in image_ids {
                let image_row = find(&image_rows, image_id, Modality::Image)?;
                images_of_text[text_row].push(image_row);
                texts_of_image[image_row].push(text_row);
            }
        }
        Ok(Self {
            text_to_image: ranks(text, image, &images_of_text, block, device)?,
            image_to_text: ranks(image, text, &texts_of_image, block, device)?,
        })
    }

    /// Recall and median rank of both.
    pub fn report(&self) -> RetrievalReport {
        RetrievalReport {
            text_to_image: RecallReport::new(&self.text_to_image),
            image_to_text: RecallReport::new(&self.image_to_text),
        }
    }
}

/// Scores retrieval of `image` by `text` and back; see [`Ranks::new`].
///
/// # Errors
/// As [`Ranks::new`].
pub fn retrieval_report(
    image: &dyn FeatureSource,
    text: &dyn FeatureSource,
    positives: &[(Id, Vec<Id>)],
    device: &Device,
) -> Result<RetrievalReport, ScoreError> {
    Ok(Ranks::new(image, text, positives, crate::DEFAULT_BLOCK, device)?.report())
}

fn row_numbers(ids: &[Id]) -> HashMap<&Id, usize> {
    ids.iter().enumerate().map(|(row, id)| (id, row)).collect()
}

fn find(rows: &HashMap<&Id, usize>, id: &Id, modality: Modality) -> Result<usize, ScoreError> {
    let unknown = || ScoreError::UnknownId { key: modality.id_key(), id: id.to_string() };
    rows.get(id).copied().ok_or_else(unknown)
}

/// Ranks, from 1, of the best true candidate of every query that has one.
fn ranks(
    queries: &dyn FeatureSource,
    candidates: &dyn FeatureSource,
    positives: &[Vec<usize>],
    block: usize,
    device: &Device,
) -> Result<Vec<usize>, ScoreError> {
    if queries.dim() != candidates.dim() {
        let (queries, candidates) = (queries.dim(), candidates.dim());
        return Err(ScoreError::Dimension { queries, candidates });
    }
    let mut targets: Vec<Option<Neighbour>> = Vec::with_capacity(positives.len());
    let (mut query_buffer, mut buffer) = (Vec::new(), Vec::new());
    for (query, rows) in positives.iter().enumerate() {
        let mut best: Option<Neighbour> = None;
        for &index in rows {
            let query = queries.read_block(query..query + 1, &mut query_buffer)?;
            let candidate = candidates.read_block(index..index + 1, &mut buffer)?;
            let found = Neighbour { index, score: exact(query, candidate) };
            if best.is_none_or(|best| found.precedes(&best)) {
                best = Some(found);
            }
        }
        targets.push(best);
    }
    let mut all = Vec::new();
    Scan { queries, candidates, block, device }.run(
        usize::MAX,
        |_| 0,
        |before, row| {
            if let Some(target) = &targets[row.query] {
                *before += ahead(target, row);
            }
        },
        |first, before| {
            let ranked = targets[first..].iter().zip(before);
            all.extend(ranked.filter_map(|(target, before)| target.map(|_| before + 1)));
            Ok::<(), ScoreError>(())
        },
    )?;
    if all.is_empty() {
        return Err(ScoreError::NoQueries);
    }
    Ok(all)
}

/// Candidates of a row that rank before `target`.
fn ahead(target: &Neighbour, row: &Row<'_>) -> usize {
    let sure = ((target.score + row.bound) as f32).next_up();
    let hopeless = ((target.score - row.bound) as f32).next_down();
    let mut count = 0;
    for (part, scores) in row.scores.chunks(LOOK).enumerate() {
        count += scores.iter().map(|&score| u32::from(score > sure)).sum::<u32>() as usize;
        // NaN, where single precision overflows, is not sure to be anything.
        let near = |score: f32| ((score >= hopeless) & (score <= sure)) | score.is_nan();
        if scores.iter().fold(false, |any, &score| any | near(score)) {
            for (at, _) in scores.iter().enumerate().filter(|(_, score)| near(**score)) {
                let offset = part * LOOK + at;
                let found = Neighbour { index: row.first + offset, score: row.exact(offset) };
                count += usize::from(found.precedes(target));
            }
        }
    }
    count
}

/// Scores that are looked at together.
const LOOK: usize = 64;

impl RecallReport {
    /// From the ranks (from 1) of the best true candidates, one per query, at least one.
    pub fn new(ranks: &[usize]) -> Self {
        let mut ranks = ranks.to_vec();
        let queries = ranks.len();
        let within = |k| ranks.iter().filter(|&&rank| rank <= k).count() as f64 / queries as f64;
        let (r1, r5, r10) = (within(1), within(5), within(10));
        Self {
            r1: r1 * 100.0,
            r5: r5 * 100.0,
            r10: r10 * 100.0,
            mean_recall: (r1 + r5 + r10) / 3.0 * 100.0,
            median_rank: median(&mut ranks),
            queries,
        }
    }
}

/// The middle one, or the mean of the two in the middle; NaN of none.
fn median(ranks: &mut [usize]) -> f64 {
    if ranks.is_empty() {
        return f64::NAN;
    }
    let even = ranks.len().is_multiple_of(2);
    let (below, &mut upper, _) = ranks.select_nth_unstable(ranks.len() / 2);
    match below.iter().max() {
        Some(&lower) if even => (lower + upper) as f64 / 2.0,
        _ => upper as f64,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::annotation;
    use crate::features::Features;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval").join(name)
    }

    fn features(rows: &[[f32; 2]]) -> Features {
        let ids = (0..rows.len() as i64).map(Id::Int).collect();
        Features::new(ids, 2, rows.concat()).unwrap()
    }

    #[test]
    fn recall_is_that_of_the_evaluation_of_the_rankings() {
        let images = Features::read(&fixture("valid_imgs.img_feat.jsonl"), Modality::Image);
        let texts = Features::read(&fixture("valid_texts.txt_feat.jsonl"), Modality::Text);
        let positives = annotation::read(&fixture("valid_texts.jsonl")).unwrap();
        let device = Device::default();
        let report =
            retrieval_report(&images.unwrap(), &texts.unwrap(), &positives, &device).unwrap();
        for (name, found, queries) in [
            ("output_ir.json", report.text_to_image, 200),
            ("output_tr.json", report.image_to_text, 76),
        ] {
            let text = std::fs::read_to_string(fixture(name)).unwrap();
            let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
            let golden = |key: &str| golden["scoreJson"][key].as_f64().unwrap();
            assert_eq!(
                [found.r1, found.r5, found.r10, found.mean_recall],
                [golden("r1"), golden("r5"), golden("r10"), golden("mean_recall")]
            );
            assert_eq!(found.queries, queries);
            assert_eq!(found.median_rank, 1.0);
        }
    }

    #[test]
    fn ranks_count_better_candidates_and_earlier_equals() {
        let query = features(&[[1.0, 0.0]]);
        let rows = [[0.5, 0.0], [0.5, 1.0], [0.9, 0.0], [0.5, 2.0], [0.1, 0.0]];
        let candidates = features(&rows);
        let rank = |positives: &[usize]| {
            ranks(&query, &candidates, &[positives.to_vec()], 2, &Device::default())
        };
        assert_eq!(rank(&[2]).unwrap(), [1]);
        assert_eq!(rank(&[0]).unwrap(), [2]);
        assert_eq!(rank(&[1]).unwrap(), [3]);
        assert_eq!(rank(&[3]).unwrap(), [4]);
        assert_eq!(rank(&[4]).unwrap(), [5]);
        assert_eq!(rank(&[4, 3, 1]).unwrap(), [3]);
        assert!(matches!(rank(&[]), Err(ScoreError::NoQueries)));
    }

    #[test]
    fn ranks_are_those_of_a_full_ranking() {
        let wave = |i: usize| [(i as f32 * 0.7).sin(), (i as f32 * 1.3).cos()];
        let queries = features(&(0..50).map(wave).collect::<Vec<_>>());
        let candidates = features(&(0..300).map(|i| wave(i % 200 + 20)).collect::<Vec<_>>());
        let device = Device::default();
        let positives: Vec<_> = (0..50).map(|query| vec![query * 5 + 3, query * 2]).collect();
        let full = crate::knn::top_k(&queries, &candidates, 300, 64, &device).unwrap();
        let expected: Vec<_> = full
            .iter()
            .zip(&positives)
            .map(|(list, rows)| list.iter().position(|hit| rows.contains(&hit.index)).unwrap() + 1)
            .collect();
        assert_eq!(ranks(&queries, &candidates, &positives, 64, &device).unwrap(), expected);
    }

    #[test]
    fn huge_values_are_ranked_where_single_precision_overflows() {
        let query = features(&[[1e30, 1e30]]);
        let candidates = features(&[[1e30, -1e30], [-1e30, 1e20], [1e30, 1e30]]);
        let positives = [vec![0]];
        let found = ranks(&query, &candidates, &positives, 8, &Device::default()).unwrap();
        assert_eq!(found, [2]);
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        let report = RecallReport::new(&[1, 40, 5, 12]);
        assert_eq!((report.r1, report.r5, report.r10), (25.0, 50.0, 50.0));
        assert_eq!((report.median_rank, report.queries), (8.5, 4));
        assert_eq!(RecallReport::new(&[3, 1, 2]).median_rank, 2.0);
    }

    #[test]
    fn texts_without_pictures_are_no_queries() {
        let (images, texts) = (features(&[[1.0, 0.0], [0.0, 1.0]]), features(&[[1.0, 0.1]; 3]));
        let positives = [(Id::Int(0), vec![Id::Int(0)]), (Id::Int(1), vec![])];
        let report = retrieval_report(&images, &texts, &positives, &Device::default()).unwrap();
        assert_eq!((report.text_to_image.queries, report.image_to_text.queries), (1, 1));
        assert_eq!(report.text_to_image.r1, 100.0);
    }

    #[test]
    fn ids_without_features_and_empty_annotations_are_errors() {
        let (images, texts) = (features(&[[1.0, 0.0]]), features(&[[1.0, 0.0]]));
        let run = |positives: &[(Id, Vec<Id>)]| {
            retrieval_report(&images, &texts, positives, &Device::default()).unwrap_err()
        };
        let error = run(&[(Id::Int(0), vec![Id::Int(9)])]).to_string();
        assert!(error.starts_with("image_id 9 of the annotations"), "{error}");
        let error = run(&[(Id::Text("a".to_owned()), vec![])]).to_string();
        assert!(error.starts_with("text_id a of the annotations"), "{error}");
        assert!(matches!(run(&[(Id::Int(0), vec![])]), ScoreError::NoQueries));
        assert!(matches!(run(&[]), ScoreError::NoQueries));
    }
}
