//! Rows of floats in a file, read where they are needed.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use cn_clip_data::{Id, pread::read_at};
use half::f16;
use rayon::prelude::*;

use super::{
    FeatureError, FeatureSource, Features,
    checks::{check_distinct, check_values},
};

/// Bytes read at a time by one thread.
const READ_BYTES: usize = 4 << 20;

/// How a value is stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    F16,
    F32,
    F64,
}

impl Width {
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// An array `[rows, dim]` in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub offset: u64,
    pub rows: usize,
    pub dim: usize,
    pub width: Width,
}

impl Layout {
    /// Bytes of the values.
    pub fn length(&self) -> Option<u64> {
        let values = (self.rows as u64).checked_mul(self.dim as u64)?;
        values.checked_mul(self.width.bytes() as u64)
    }
}

/// Features in a file, with their ids in memory.
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
    layout: Layout,
    ids: Vec<Id>,
    /// Rows from the first on that have been checked.
    checked: AtomicUsize,
}

impl BlockFile {
    /// Takes ids, which `named` names, and where the values lie.
    pub fn new(
        path: &Path,
        file: File,
        layout: Layout,
        ids: Vec<Id>,
        named: &str,
    ) -> Result<Self, FeatureError> {
        let Layout { rows, dim, .. } = layout;
        if rows == 0 || dim == 0 {
            return Err(FeatureError::Empty { path: path.to_owned() });
        }
        if ids.len() != rows {
            let reason = format!("has {rows} rows, but {named} has {} ids", ids.len());
            return Err(FeatureError::file(path, reason));
        }
        check_distinct(&ids).map_err(|(row, problem)| FeatureError::FileRow {
            path: path.to_owned(),
            row,
            id: ids[row].clone(),
            problem,
        })?;
        Ok(Self { path: path.to_owned(), file, layout, ids, checked: AtomicUsize::new(0) })
    }

    /// Reads everything into memory.
    pub fn into_features(self) -> Result<Features, FeatureError> {
        let mut data = Vec::new();
        self.read_block(0..self.layout.rows, &mut data)?;
        Ok(Features { ids: self.ids, dim: self.layout.dim, data })
    }

    /// Reads whole rows from `first` on.
    fn read(&self, first: usize, values: &mut [f32]) -> Result<(), FeatureError> {
        let Layout { offset, dim, width, .. } = self.layout;
        let at = offset + (first * dim * width.bytes()) as u64;
        if width == Width::F32 && cfg!(target_endian = "little") {
            let bytes = bytemuck::cast_slice_mut(values);
            return read_at(&self.file, bytes, at).map_err(FeatureError::read(&self.path));
        }
        let mut bytes = vec![0; values.len() * width.bytes()];
        read_at(&self.file, &mut bytes, at).map_err(FeatureError::read(&self.path))?;
        match width {
            Width::F16 => convert(&bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Width::F32 => convert(&bytes, values, f32::from_le_bytes),
            Width::F64 => convert(&bytes, values, |bytes| f64::from_le_bytes(bytes) as f32),
        }
        Ok(())
    }

    fn check(&self, first: usize, values: &[f32]) -> Result<(), FeatureError> {
        let dim = self.layout.dim;
        let bad = values.chunks_exact(dim).enumerate().find_map(|(row, values)| {
            check_values(values, dim).err().map(|problem| (first + row, problem))
        });
        match bad {
            None => Ok(()),
            Some((row, problem)) => Err(FeatureError::FileRow {
                path: self.path.clone(),
                row,
                id: self.ids[row].clone(),
                problem,
            }),
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

impl FeatureSource for BlockFile {
    fn ids(&self) -> &[Id] {
        &self.ids
    }

    fn dim(&self) -> usize {
        self.layout.dim
    }

    fn read_block<'a>(
        &'a self,
        rows: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], FeatureError> {
        assert!(rows.end <= self.ids.len(), "rows beyond the end");
        let dim = self.layout.dim;
        buffer.resize(rows.len() * dim, 0.0);
        // What was read and found good is not checked again.
        let checked = self.checked.load(Ordering::Relaxed);
        let chunk = (READ_BYTES / 4 / dim).max(1);
        let results = buffer.par_chunks_mut(chunk * dim).enumerate().map(|(index, values)| {
            let first = rows.start + index * chunk;
            self.read(first, values)?;
            if rows.end > checked { self.check(first, values) } else { Ok(()) }
        });
        results.find_map_first(Result::err).map_or(Ok(()), Err)?;
        if rows.start <= checked {
            self.checked.fetch_max(rows.end, Ordering::Relaxed);
        }
        Ok(buffer)
    }
}
