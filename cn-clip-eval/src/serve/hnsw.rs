//! Approximate search by the `usearch` crate's graph of neighbours.

use rayon::prelude::*;
use usearch::{IndexOptions, MetricKind, ScalarKind};

use super::ServeError;
use crate::{features::Features, knn::Neighbour};

/// Candidates looked at while searching, at least: for a recall@10 above 0.99 at the usual sizes.
const EXPANSION: usize = 128;

/// A graph over the rows of features.
pub(super) struct Graph {
    index: usearch::Index,
}

impl Graph {
    /// Builds the graph on all cores.
    pub fn build(features: &Features) -> Result<Self, ServeError> {
        let index = usearch::Index::new(&IndexOptions {
            dimensions: features.dim(),
            metric: MetricKind::IP,
            quantization: ScalarKind::F32,
            connectivity: 16,
            expansion_add: EXPANSION,
            expansion_search: EXPANSION,
            multi: false,
        })
        .map_err(failed)?;
        index
            .reserve_capacity_and_threads(features.rows(), rayon::current_num_threads())
            .map_err(failed)?;
        (0..features.rows())
            .into_par_iter()
            .try_for_each(|row| index.add(row as u64, features.row(row)))
            .map_err(failed)?;
        Ok(Self { index })
    }

    /// Best rows of `features`, those of the graph, by their exact scores.
    pub fn search(
        &self,
        features: &Features,
        query: &[f32],
        hits: usize,
    ) -> Result<Vec<Neighbour>, String> {
        let found = self.index.search(query, hits).map_err(|error| error.to_string())?;
        let mut found: Vec<Neighbour> = found
            .keys
            .iter()
            .map(|&key| key as usize)
            .map(|index| Neighbour { index, score: inner_product(query, features.row(index)) })
            .collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        Ok(found)
    }
}

fn failed(error: impl std::fmt::Display) -> ServeError {
    ServeError::Index(error.to_string())
}

/// In doubles, as exact search gives it.
fn inner_product(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::Device;
    use cn_clip_data::Id;

    use super::*;
    use crate::serve::{
        Index, IndexKind,
        index::{Query, search},
    };

    /// Unit vectors around a hundred centres.
    fn clusters(rows: usize, dim: usize) -> Features {
        let wave = |n: usize| (n as f32 * 12.9898).sin() * 43_758.547 % 1.0;
        let mut values = Vec::with_capacity(rows * dim);
        for row in 0..rows {
            let value = |c| wave(row % 100 * dim + c) + 0.5 * wave(1_000_003 + row * dim + c);
            let vector: Vec<f32> = (0..dim).map(value).collect();
            let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            values.extend(vector.iter().map(|value| value / norm));
        }
        Features::new((0..rows as i64).map(Id::Int).collect(), dim, values).unwrap()
    }

    #[test]
    fn nearly_all_of_the_best_are_found_with_their_exact_scores() {
        let features = clusters(3000, 32);
        let index = Index::new(features.clone(), IndexKind::Hnsw, Device::default()).unwrap();
        assert_eq!((index.kind(), index.len()), (IndexKind::Hnsw, 3000));
        let recall = index.recall(10, 200).unwrap();
        assert!(recall > 0.95, "recall@10 is {recall}");
        let exact_index = Index::new(features.clone(), IndexKind::Exact, Device::default());
        assert_eq!(exact_index.unwrap().recall(10, 200).unwrap(), 1.0);

        let query = |hits| Query { embedding: features.row(7).to_vec(), hits };
        let mut compute = search(Arc::new(index));
        let found = compute(0, vec![query(5), query(1)]);
        let [Ok(five), Ok(one)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((five.len(), one.len(), five[0].index), (5, 1, 7));
        assert_eq!(five[0], one[0]);
        for hit in five {
            let expected = inner_product(features.row(7), features.row(hit.index));
            assert!((hit.score - expected).abs() < 1e-12);
        }
        assert!(five.is_sorted_by(|a, b| a.score >= b.score));
    }

    #[test]
    fn more_hits_than_pictures_are_all_pictures() {
        let features = clusters(20, 8);
        let index = Index::new(features.clone(), IndexKind::Hnsw, Device::default()).unwrap();
        let embedding = features.row(0).to_vec();
        let found = search(Arc::new(index))(0, vec![Query { embedding, hits: 500 }]);
        assert_eq!(found[0].as_ref().unwrap().len(), 20);
    }
}
