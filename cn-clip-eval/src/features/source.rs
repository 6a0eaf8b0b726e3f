//! Features that need not be in memory.

use std::{ops::Range, path::Path};

use cn_clip_data::Id;

use super::{FeatureError, FeatureFormat, Features, Modality, jsonl, npy, parquet, safetensors};

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

    /// Some rows, `[rows.len(), dim]` row by row: where they lie if they are in memory, else read
    /// into `buffer`. Several threads may read at once.
    ///
    /// # Errors
    /// [`FeatureError::FileRow`] for a value that is not finite or a vector of zeros,
    /// [`FeatureError::Read`] if the file cannot be read.
    ///
    /// # Panics
    /// If `rows` goes beyond [`FeatureSource::rows`].
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

/// Opens a feature file of any form. Values of `.npy` and `.safetensors` stay in the file until
/// they are asked for; `.jsonl` and `.parquet` are read into memory.
///
/// The form is that of the file's ending or, if that says nothing, of its first bytes. `modality`
/// says which id the rows must carry, in the forms that name it.
///
/// # Errors
/// [`FeatureError`], naming the file and where possible the line or row.
pub fn open(path: &Path, modality: Modality) -> Result<Box<dyn FeatureSource>, FeatureError> {
    Ok(match FeatureFormat::of_file(path)? {
        FeatureFormat::Jsonl => Box::new(jsonl::read(path, modality)?),
        FeatureFormat::Npy => Box::new(npy::open(path)?),
        FeatureFormat::Safetensors => Box::new(safetensors::open(path)?),
        FeatureFormat::Parquet => Box::new(parquet::read(path, modality)?),
    })
}
