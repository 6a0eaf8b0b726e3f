//! The pictures that are searched.

use std::collections::HashMap;

use burn::tensor::Device;
use cn_clip_data::Id;

use super::{ServeError, batcher::Compute};
use crate::{
    features::Features,
    knn::{Neighbour, top_k},
};

/// Candidates of the exact search scored at a time.
const BLOCK: usize = crate::DEFAULT_BLOCK;

/// How pictures are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexKind {
    /// By looking at all of them.
    #[default]
    Exact,
    /// By a graph of neighbours (arXiv 1603.09320), which may miss some; needs the feature `hnsw`.
    #[cfg(feature = "hnsw")]
    Hnsw,
}

impl IndexKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            #[cfg(feature = "hnsw")]
            Self::Hnsw => "hnsw",
        }
    }
}

/// A search: a normalised feature and the number of hits.
pub(super) struct Query {
    pub embedding: Vec<f32>,
    pub hits: usize,
}

/// Features of pictures, searchable.
pub struct Index {
    features: Features,
    /// Rows by the text of their id.
    rows: HashMap<String, usize>,
    device: Device,
    #[cfg(feature = "hnsw")]
    graph: Option<super::hnsw::Graph>,
}

impl Index {
    /// An index over `features`, computing on `device`.
    ///
    /// # Errors
    /// [`ServeError::Index`] if the graph of an approximate index cannot be built.
    pub fn new(features: Features, kind: IndexKind, device: Device) -> Result<Self, ServeError> {
        let rows = features.ids().iter().enumerate().map(|(row, id)| (id.to_string(), row));
        let rows = rows.collect();
        #[cfg(feature = "hnsw")]
        let graph = match kind {
            IndexKind::Exact => None,
            IndexKind::Hnsw => Some(super::hnsw::Graph::build(&features)?),
        };
        #[cfg(not(feature = "hnsw"))]
        let IndexKind::Exact = kind;
        Ok(Self {
            features,
            rows,
            device,
            #[cfg(feature = "hnsw")]
            graph,
        })
    }

    /// Kind of the index.
    pub fn kind(&self) -> IndexKind {
        #[cfg(feature = "hnsw")]
        if self.graph.is_some() {
            return IndexKind::Hnsw;
        }
        IndexKind::Exact
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.features.rows()
    }

    /// Whether there are none; there always are some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values of a feature.
    pub fn dim(&self) -> usize {
        self.features.dim()
    }

    /// The id of a row.
    pub(super) fn id(&self, row: usize) -> &Id {
        &self.features.ids()[row]
    }

    /// The row of an id.
    pub(super) fn row(&self, id: &str) -> Option<usize> {
        self.rows.get(id).copied()
    }

    /// The feature of a row.
    pub(super) fn feature(&self, row: usize) -> &[f32] {
        self.features.row(row)
    }

    /// Best pictures of each query, best first; fewer than asked for if there are no more.
    ///
    /// # Errors
    /// A message if a query is zero or not finite, or the device fails.
    fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Neighbour>>, String> {
        let hits: Vec<usize> = queries.iter().map(|query| query.hits).collect();
        #[cfg(feature = "hnsw")]
        if let Some(graph) = &self.graph {
            let found = queries
                .iter()
                .map(|query| graph.search(&self.features, &query.embedding, query.hits));
            return found.collect();
        }
        let ids = (0..queries.len() as i64).map(Id::Int).collect();
        let values: Vec<f32> = queries.into_iter().flat_map(|query| query.embedding).collect();
        let queries = Features::new(ids, self.dim(), values).map_err(|error| error.to_string())?;
        let most = hits.iter().copied().max().unwrap_or(1);
        let found = top_k(&queries, &self.features, most, BLOCK, &self.device);
        let mut found = found.map_err(|error| error.to_string())?;
        found.iter_mut().zip(hits).for_each(|(list, hits)| list.truncate(hits));
        Ok(found)
    }

    /// How many of the best `hits` pictures the index finds, as a share of those there are: measured
    /// by `samples` of its own pictures, spread evenly, against exact search.
    ///
    /// # Errors
    /// [`ServeError::Index`] if a search fails.
    #[cfg(feature = "hnsw")]
    pub fn recall(&self, hits: usize, samples: usize) -> Result<f64, ServeError> {
        let step = (self.len() / samples.max(1)).max(1);
        let rows: Vec<usize> = (0..self.len()).step_by(step).take(samples).collect();
        let query = |&row: &usize| Query { embedding: self.feature(row).to_vec(), hits };
        let found = self.search(rows.iter().map(query).collect()).map_err(ServeError::Index)?;
        let values = rows.iter().flat_map(|&row| self.feature(row)).copied().collect();
        let ids = (0..rows.len() as i64).map(Id::Int).collect();
        let queries = Features::new(ids, self.dim(), values)?;
        let exact = top_k(&queries, &self.features, hits, BLOCK, &self.device)?;
        let (mut right, mut all) = (0, 0);
        for (found, exact) in found.iter().zip(&exact) {
            all += exact.len();
            // Pictures of the same score are as good.
            let last = exact.last().map_or(f64::INFINITY, |hit| hit.score);
            right += found.iter().filter(|hit| hit.score >= last).count().min(exact.len());
        }
        Ok(right as f64 / all.max(1) as f64)
    }
}

/// What computes a batch of searches.
pub(super) fn search(index: std::sync::Arc<Index>) -> Compute<Query, Vec<Neighbour>> {
    Box::new(move |_, queries| {
        let count = queries.len();
        match index.search(queries) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(reason) => vec![Err(reason); count],
        }
    })
}
