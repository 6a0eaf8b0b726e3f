//! Features that need not be in memory.

use std::{ops::Range, path::Path};

use cn_clip_data::Id;

use super::{FeatureError, Features, Modality};

/// Features whose values are read in blocks of rows, from memory or from a file. At least one row
/// and one value per row; no id comes twice.
pub trait FeatureSource: Send + Sync {
    /// Ids, in the order of the rows.
    fn ids(&self) -> &[Id];

    /// Number of values in a row.
    fn dim(&self) -> usize;

    /// Number of rows.
    fn rows(&self) -> usize {
        self.ids().len()
    }

    /// Some rows, `[rows.len(), dim]` row by row.
    ///
    /// # Errors
    /// [`FeatureError`] if the file cannot be read.
    fn read_block<'a>(
        &'a self,
        rows: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], FeatureError>;
}

impl FeatureSource for Features {
    fn ids(&self) -> &[Id] {
        self.ids()
    }

    fn dim(&self) -> usize {
        self.dim()
    }

    fn read_block<'a>(
        &'a self,
        rows: Range<usize>,
        _buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], FeatureError> {
        Ok(&self.data()[rows.start * self.dim()..rows.end * self.dim()])
    }
}

/// Opens a feature file.
///
/// # Errors
/// [`FeatureError`], naming the file and line.
pub fn open(path: &Path, modality: Modality) -> Result<Box<dyn FeatureSource>, FeatureError> {
    Ok(Box::new(Features::read(path, modality)?))
}
