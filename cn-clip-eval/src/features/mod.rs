//! Embeddings of pictures and texts, in memory and in files.
//!
//! | Form | Ids | Reading |
//! |---|---|---|
//! | `.jsonl`: `{"image_id": 1, "feature": [0.1, …]}`, as the reference writes it | in the line | into memory |
//! | `.npy`: `[rows, dim]` | one JSON number or string per line in `X.ids.jsonl` beside `X.npy` | in blocks |
//! | `.safetensors`: tensor `features` `[rows, dim]` | tensor `ids`: int64, or the bytes of such lines | in blocks |
//! | `.parquet`: column `feature`, a list of floats | column `image_id` or `text_id` | into memory |
//!
//! [`open`] gives any of them as a [`FeatureSource`], [`Features::read`] in memory;
//! [`FeatureWriter`] writes them.

mod arrow_schema;
mod block_file;
mod checks;
#[cfg(test)]
mod damaged;
mod error;
mod format;
mod ids;
mod jsonl;
mod npy;
mod parquet;
mod part;
mod quick;
mod safetensors;
mod source;
mod writer;

use std::{fmt, path::Path};

use cn_clip_data::Id;
use rayon::prelude::*;

use self::checks::{check_distinct, check_values};
pub use self::{
    error::{FeatureError, RowProblem},
    format::FeatureFormat,
    source::{FeatureSource, open},
    writer::{FeatureWriter, Settings},
};

/// What a feature or an id stands for; decides the names of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    /// Pictures: `image_id`, `image_ids`.
    Image,
    /// Texts: `text_id`, `text_ids`.
    Text,
}

impl Modality {
    /// Key of one id.
    pub fn id_key(self) -> &'static str {
        match self {
            Self::Image => "image_id",
            Self::Text => "text_id",
        }
    }

    /// Key of a list of ids.
    pub fn ids_key(self) -> &'static str {
        match self {
            Self::Image => "image_ids",
            Self::Text => "text_ids",
        }
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Text => "text",
        })
    }
}

/// Features of several pictures or texts: at least one row, all of one size, finite, none zero, and
/// no id twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    ids: Vec<Id>,
    dim: usize,
    data: Vec<f32>,
}

impl Features {
    /// Reads a feature file of any form (see [`open`]).
    ///
    /// # Errors
    /// [`FeatureError`], naming the file and where possible the line or row.
    pub fn read(path: &Path, modality: Modality) -> Result<Self, FeatureError> {
        match FeatureFormat::of_file(path)? {
            FeatureFormat::Jsonl => jsonl::read(path, modality),
            FeatureFormat::Npy => npy::open(path)?.into_features(),
            FeatureFormat::Safetensors => safetensors::open(path)?.into_features(),
            FeatureFormat::Parquet => parquet::read(path, modality),
        }
    }

    /// Checks and takes `data`, `[ids.len(), dim]` row by row.
    ///
    /// # Errors
    /// [`FeatureError::Shape`] if the sizes do not fit, [`FeatureError::Row`] for the first bad row.
    pub fn new(ids: Vec<Id>, dim: usize, data: Vec<f32>) -> Result<Self, FeatureError> {
        if ids.is_empty() || dim == 0 || ids.len().checked_mul(dim) != Some(data.len()) {
            return Err(FeatureError::Shape { rows: ids.len(), dim, values: data.len() });
        }
        let bad = data.par_chunks_exact(dim).enumerate().find_map_first(|(row, values)| {
            check_values(values, dim).err().map(|problem| (row, problem))
        });
        bad.map_or(Ok(()), Err).and_then(|()| check_distinct(&ids)).map_err(|(row, problem)| {
            let id = ids[row].clone();
            FeatureError::Row { row, id, problem }
        })?;
        Ok(Self { ids, dim, data })
    }

    /// Ids, in the order of the rows.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// Number of values in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// All values, `[rows, dim]`.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// One row.
    ///
    /// # Panics
    /// If `index` is not below [`Features::rows`].
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.dim..(index + 1) * self.dim]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: i64) -> Vec<Id> {
        (0..count).map(Id::Int).collect()
    }

    #[test]
    fn rows_are_addressed_by_index() {
        let features = Features::new(ids(2), 3, vec![1., 2., 3., 4., 5., 6.]).unwrap();
        assert_eq!((features.rows(), features.dim()), (2, 3));
        assert_eq!(features.row(1), [4., 5., 6.]);
    }

    #[test]
    fn bad_values_in_memory_name_their_row() {
        let problem = |ids, data| match Features::new(ids, 2, data) {
            Err(FeatureError::Row { row, problem, .. }) => (row, problem),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            problem(ids(2), vec![1., 0., 0., f32::NAN]),
            (1, RowProblem::NotFinite { position: 1 })
        );
        assert_eq!(
            problem(ids(2), vec![f32::NEG_INFINITY, 0., 0., 1.]),
            (0, RowProblem::NotFinite { position: 0 })
        );
        assert_eq!(problem(ids(2), vec![1., 0., 0., -0.]), (1, RowProblem::Zero));
        assert_eq!(
            problem(vec![Id::Int(7), Id::Int(7)], vec![1., 0., 0., 1.]),
            (1, RowProblem::Duplicate { id: Id::Int(7), first: 0 })
        );
    }

    #[test]
    fn sizes_must_fit() {
        for (rows, dim, values) in [(2, 2, 3), (0, 2, 0), (2, 0, 0)] {
            assert!(matches!(
                Features::new(ids(rows), dim, vec![1.0; values]),
                Err(FeatureError::Shape { .. })
            ));
        }
    }
}
