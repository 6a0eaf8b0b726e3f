//! The checks that rows share, whether they come from a file, memory or a model.

use cn_clip_data::Id;
use rustc_hash::FxHashMap;

use super::RowProblem;

/// Checks one row: `dim` values, finite, not all zero.
pub(super) fn check_values(values: &[f32], dim: usize) -> Result<(), RowProblem> {
    if values.is_empty() {
        return Err(RowProblem::EmptyFeature);
    }
    if values.len() != dim {
        return Err(RowProblem::Dimension { found: values.len(), expected: dim });
    }
    // A sum of magnitudes is one pass without branches; it is not finite if a value is not, and
    // may overflow where none is.
    let sum: f32 = values.iter().map(|value| value.abs()).sum();
    if sum > 0.0 && sum.is_finite() {
        return Ok(());
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(position) => Err(RowProblem::NotFinite { position }),
        None if values.iter().all(|&value| value == 0.0) => Err(RowProblem::Zero),
        None => Ok(()),
    }
}

/// Finds ids that come twice.
#[derive(Default)]
pub(super) struct SeenIds(FxHashMap<Id, usize>);

impl SeenIds {
    /// Notes the id of a row.
    pub fn add(&mut self, row: usize, id: &Id) -> Result<(), RowProblem> {
        match self.0.insert(id.clone(), row) {
            Some(first) => Err(RowProblem::Duplicate { id: id.clone(), first }),
            None => Ok(()),
        }
    }
}

/// The first row whose id has been there before.
pub(super) fn check_distinct(ids: &[Id]) -> Result<(), (usize, RowProblem)> {
    let mut seen = SeenIds(FxHashMap::with_capacity_and_hasher(ids.len(), Default::default()));
    ids.iter().enumerate().try_for_each(|(row, id)| seen.add(row, id).map_err(|why| (row, why)))
}
