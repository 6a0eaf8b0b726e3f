//! Embeddings in memory and in the reference's JSON lines:
//! `{"image_id": 1, "feature": [0.1, …]}` and `{"text_id": 1, "feature": […]}`.

mod read;
mod source;
mod write;

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use cn_clip_data::Id;
pub use source::{FeatureSource, open};
pub use write::FeatureWriter;

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
    /// Checks and takes `data`, `[ids.len(), dim]` row by row.
    ///
    /// # Errors
    /// [`FeatureError::Shape`] if the sizes do not fit, [`FeatureError::Row`] for the first bad row.
    pub fn new(ids: Vec<Id>, dim: usize, data: Vec<f32>) -> Result<Self, FeatureError> {
        if ids.is_empty() || dim == 0 || data.len() != ids.len() * dim {
            return Err(FeatureError::Shape { rows: ids.len(), dim, values: data.len() });
        }
        let mut checks = RowChecks::default();
        for (row, (id, values)) in ids.iter().zip(data.chunks_exact(dim)).enumerate() {
            checks.check(row, id, values).map_err(|problem| FeatureError::Row {
                row,
                id: id.clone(),
                problem,
            })?;
        }
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

/// Why a feature file, or features in memory, cannot be used.
#[derive(Debug, Error)]
pub enum FeatureError {
    /// The file cannot be opened or read.
    #[error("cannot read features from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file cannot be written; nothing is left under its name.
    #[error("cannot write features to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line of a file is bad.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// The file has no line at all.
    #[error("{path}: no features in this file; did the extraction finish?")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A row in memory is bad.
    #[error("row {row} (id {id}): {problem}")]
    Row {
        /// The row, from 0.
        row: usize,
        /// Its id.
        id: Id,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// The numbers of ids and values do not fit together, or there are none.
    #[error("{values} values are not {rows} rows of {dim}, or there is nothing")]
    Shape {
        /// Number of ids.
        rows: usize,
        /// Values of a row.
        dim: usize,
        /// Values in all.
        values: usize,
    },
}

/// What is wrong with one feature.
#[derive(Debug, PartialEq, Error)]
pub enum RowProblem {
    /// Not a JSON object of the right form.
    #[error("malformed JSON: {0}")]
    Json(String),
    /// The id or the feature is not there.
    #[error("no \"{0}\"; is this a file of the other modality, or no feature file?")]
    MissingKey(&'static str),
    /// The feature has no value.
    #[error("the feature is empty")]
    EmptyFeature,
    /// Another size than the rows before.
    #[error("the feature has {found} values, those before have {expected}")]
    Dimension {
        /// Values of this row.
        found: usize,
        /// Values of the first row.
        expected: usize,
    },
    /// NaN or infinity (also: too large for single precision).
    #[error("value {position} of the feature is NaN or infinite; extract the features again")]
    NotFinite {
        /// Position in the row, from 0.
        position: usize,
    },
    /// A vector of zeros has no direction.
    #[error("all values of the feature are zero")]
    Zero,
    /// The id has been there before.
    #[error("id {id} has been seen before, as entry {}", .first + 1)]
    Duplicate {
        /// The id.
        id: Id,
        /// Where it was first, from 0.
        first: usize,
    },
}

/// The checks that rows share, whether they come from a file, memory or a model.
#[derive(Default)]
struct RowChecks {
    dim: Option<usize>,
    seen: std::collections::HashMap<Id, usize>,
}

impl RowChecks {
    fn check(&mut self, row: usize, id: &Id, values: &[f32]) -> Result<(), RowProblem> {
        let expected = *self.dim.get_or_insert(values.len());
        if values.is_empty() {
            return Err(RowProblem::EmptyFeature);
        }
        if values.len() != expected {
            return Err(RowProblem::Dimension { found: values.len(), expected });
        }
        if let Some(position) = values.iter().position(|value| !value.is_finite()) {
            return Err(RowProblem::NotFinite { position });
        }
        if values.iter().all(|&value| value == 0.0) {
            return Err(RowProblem::Zero);
        }
        match self.seen.insert(id.clone(), row) {
            Some(first) => Err(RowProblem::Duplicate { id: id.clone(), first }),
            None => Ok(()),
        }
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
