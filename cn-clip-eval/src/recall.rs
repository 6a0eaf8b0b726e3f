//! Recall of both directions of retrieval, from features in memory.

use std::collections::HashMap;

use burn::tensor::Device;
use rayon::prelude::*;
use serde::Serialize;

use crate::features::{Features, Modality};
use crate::knn::Neighbour;
use crate::scores::{DEFAULT_BLOCK, ScoreError, error_bounds, exact, for_each_tile};
use cn_clip_data::Id;

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

/// Scores retrieval of `image` by `text` and back.
///
/// `positives` lists each text with the pictures it belongs to. Ranks are those of
/// [`crate::knn::top_k`]: equal scores keep row order. Texts without pictures, and pictures no text
/// names, are candidates but no queries.
///
/// # Errors
/// [`ScoreError::UnknownId`] for an id without a feature, [`ScoreError::NoQueries`] if no text has a
/// picture, and those of the search.
pub fn retrieval_report(
    image: &Features,
    text: &Features,
    positives: &[(Id, Vec<Id>)],
    device: &Device,
) -> Result<RetrievalReport, ScoreError> {
    let (image_rows, text_rows) = (row_numbers(image), row_numbers(text));
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
    Ok(RetrievalReport {
        text_to_image: RecallReport::new(ranks(text, image, &images_of_text, device)?)?,
        image_to_text: RecallReport::new(ranks(image, text, &texts_of_image, device)?)?,
    })
}

fn row_numbers(features: &Features) -> HashMap<&Id, usize> {
    features.ids().iter().enumerate().map(|(row, id)| (id, row)).collect()
}

fn find(rows: &HashMap<&Id, usize>, id: &Id, modality: Modality) -> Result<usize, ScoreError> {
    let unknown = || ScoreError::UnknownId { key: modality.id_key(), id: id.to_string() };
    rows.get(id).copied().ok_or_else(unknown)
}

/// Ranks, from 1, of the best true candidate of every query that has one.
fn ranks(
    queries: &Features,
    candidates: &Features,
    positives: &[Vec<usize>],
    device: &Device,
) -> Result<Vec<usize>, ScoreError> {
    if queries.dim() != candidates.dim() {
        let (queries, candidates) = (queries.dim(), candidates.dim());
        return Err(ScoreError::Dimension { queries, candidates });
    }
    let score = |query: usize, index: usize| Neighbour {
        index,
        score: exact(queries.row(query), candidates.row(index)),
    };
    let best = |(query, rows): (usize, &Vec<usize>)| {
        let found = rows.iter().map(|&row| score(query, row));
        found.reduce(|best, next| if next.precedes(&best) { next } else { best })
    };
    let targets: Vec<Option<Neighbour>> = positives.par_iter().enumerate().map(best).collect();
    let bounds = error_bounds(queries, candidates);
    let mut before = vec![0_usize; queries.rows()];

    for_each_tile(queries, candidates, DEFAULT_BLOCK, device, |tile| {
        let width = tile.candidates.len();
        before[tile.queries.clone()]
            .par_iter_mut()
            .zip(tile.queries.into_par_iter())
            .zip(tile.scores.par_chunks(width))
            .for_each(|((before, query), scores)| {
                let Some(target) = &targets[query] else { return };
                let sure = ((target.score + bounds[query]) as f32).next_up();
                let hopeless = ((target.score - bounds[query]) as f32).next_down();
                let ahead = |&(index, &approximate): &(usize, &f32)| {
                    let near = approximate >= hopeless || approximate.is_nan();
                    approximate > sure || (near && score(query, index).precedes(target))
                };
                *before += tile.candidates.clone().zip(scores).filter(ahead).count();
            });
    })?;
    let ranked = targets.iter().zip(before).filter(|(target, _)| target.is_some());
    Ok(ranked.map(|(_, before)| before + 1).collect())
}

impl RecallReport {
    /// From the ranks (from 1) of the best true candidates, one per query.
    fn new(mut ranks: Vec<usize>) -> Result<Self, ScoreError> {
        if ranks.is_empty() {
            return Err(ScoreError::NoQueries);
        }
        ranks.sort_unstable();
        let queries = ranks.len();
        let within = |k| ranks.partition_point(|&rank| rank <= k) as f64 / queries as f64;
        let (r1, r5, r10) = (within(1), within(5), within(10));
        let middle = ranks[(queries - 1) / 2] + ranks[queries / 2];
        Ok(Self {
            r1: r1 * 100.0,
            r5: r5 * 100.0,
            r10: r10 * 100.0,
            mean_recall: (r1 + r5 + r10) / 3.0 * 100.0,
            median_rank: middle as f64 / 2.0,
            queries,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::annotation;

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
            ranks(&query, &candidates, &[positives.to_vec()], &Device::default()).unwrap()
        };
        assert_eq!(rank(&[2]), [1]);
        assert_eq!(rank(&[0]), [2]);
        assert_eq!(rank(&[1]), [3]);
        assert_eq!(rank(&[3]), [4]);
        assert_eq!(rank(&[4]), [5]);
        assert_eq!(rank(&[4, 3, 1]), [3]);
        assert_eq!(rank(&[]), [0; 0]);
    }

    #[test]
    fn huge_values_are_ranked_where_single_precision_overflows() {
        let query = features(&[[1e30, 1e30]]);
        let candidates = features(&[[1e30, -1e30], [-1e30, 1e20], [1e30, 1e30]]);
        let positives = [vec![0]];
        assert_eq!(ranks(&query, &candidates, &positives, &Device::default()).unwrap(), [2]);
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        let report = RecallReport::new(vec![1, 40, 5, 12]).unwrap();
        assert_eq!((report.r1, report.r5, report.r10), (25.0, 50.0, 50.0));
        assert_eq!((report.median_rank, report.queries), (8.5, 4));
        assert_eq!(RecallReport::new(vec![3, 1, 2]).unwrap().median_rank, 2.0);
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
