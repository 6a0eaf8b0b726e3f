//! An open file, read by position.

use std::{fs::File, path::PathBuf, sync::Arc};

use crate::ModelError;

/// The file behind lazy tensors.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: PathBuf,
    file: File,
    pub length: u64,
}

impl Source {
    pub fn open(path: PathBuf) -> Result<Arc<Self>, ModelError> {
        let file = File::open(&path).map_err(ModelError::io(&path))?;
        let meta = file.metadata().map_err(ModelError::io(&path))?;
        if !meta.is_file() {
            return Err(ModelError::format(path, "not a file"));
        }
        Ok(Arc::new(Self { path, file, length: meta.len() }))
    }

    /// Reads `length` bytes at `offset`, which must lie inside the file.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, ModelError> {
        self.check(offset, length)?;
        let mut bytes = vec![0; length];
        self.fill(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether a range lies inside the file.
    pub fn check(&self, offset: u64, length: usize) -> Result<(), ModelError> {
        match offset.checked_add(length as u64).filter(|end| *end <= self.length) {
            Some(_) => Ok(()),
            None => Err(self.damaged(format!(
                "{length} bytes at offset {offset} lie beyond its end: the file is truncated"
            ))),
        }
    }

    /// Reads a range that lies inside the file.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ModelError> {
        read_at(&self.file, bytes, offset).map_err(ModelError::io(&self.path))
    }

    pub fn reader(&self) -> Result<File, ModelError> {
        File::open(&self.path).map_err(ModelError::io(&self.path))
    }

    pub fn damaged(&self, reason: impl Into<String>) -> ModelError {
        ModelError::format(&self.path, reason)
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
