//! Random access to the rows of a text file.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::{error::DataError, pread::read_at};

/// Where the row of a pair lies. Pairs of one row follow each other.
#[derive(Debug, Clone, Copy)]
struct Row {
    offset: u64,
    length: u32,
    line: u32,
}

/// The rows of the pairs of a file.
pub(super) struct Rows {
    path: PathBuf,
    file: File,
    rows: Vec<Row>,
}

/// What a pair's row holds.
pub(super) struct RowText {
    /// The bytes of the row.
    pub bytes: Vec<u8>,
    /// Number of the pair among those of the row.
    pub which: usize,
    /// Line of the row, from 1.
    pub line: u64,
}

impl Rows {
    /// No rows of a file yet.
    pub fn new(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, rows: Vec::new() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Appends a row that `pairs` pairs come from.
    pub fn push(&mut self, start: u64, end: u64, line: u64, pairs: usize) -> Result<(), DataError> {
        let length = u32::try_from(end.saturating_sub(start))
            .map_err(|_| DataError::line(&self.path, line, "is longer than 4 GiB"))?;
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        self.rows.extend(std::iter::repeat_n(Row { offset: start, length, line }, pairs));
        Ok(())
    }

    /// Reads the row of a pair.
    pub fn read(&self, index: usize) -> Result<RowText, DataError> {
        let row = self.row(index)?;
        let mut bytes = vec![0; row.length as usize];
        read_at(&self.file, &mut bytes, row.offset).map_err(DataError::io(&self.path))?;
        let before = self.rows.get(..index).unwrap_or_default();
        let which = before.iter().rev().take_while(|other| other.offset == row.offset).count();
        Ok(RowText { bytes, which, line: row.line.into() })
    }

    /// An error at the row of a pair.
    pub fn error(&self, index: usize, reason: impl ToString) -> DataError {
        let line = self.row(index).map_or(0, |row| row.line.into());
        DataError::line(&self.path, line, reason)
    }

    fn row(&self, index: usize) -> Result<Row, DataError> {
        self.rows.get(index).copied().ok_or_else(|| {
            DataError::file(
                &self.path,
                format!("pair {index} of {} does not exist", self.rows.len()),
            )
        })
    }
}
