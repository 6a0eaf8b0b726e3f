//! A tensor that still lies in its file.

use std::{fs::File, path::PathBuf, sync::Arc};

use half::{bf16, f16};

use crate::ModelError;

/// Element types that checkpoints hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer.
    I16,
    /// 8-bit integer.
    I8,
    /// Byte.
    U8,
    /// Truth value, one byte.
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

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
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        if end.is_none() {
            return Err(self.damaged(format!(
                "{length} bytes at offset {offset} lie beyond its end: the file is truncated"
            )));
        }
        let mut bytes = vec![0; length];
        read_at(&self.file, &mut bytes, offset).map_err(ModelError::io(&self.path))?;
        Ok(bytes)
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

/// A tensor of a checkpoint: type and shape known, values read on demand.
#[derive(Debug, Clone)]
pub struct LazyTensor {
    /// Element type in the file.
    pub element: ElementType,
    /// Shape.
    pub shape: Vec<usize>,
    pub(crate) source: Arc<Source>,
    /// Absolute position of the first byte of the storage.
    pub(crate) offset: u64,
    /// Bytes from `offset` that belong to the storage.
    pub(crate) length: u64,
    /// Row-major strides in elements, if the tensor is not contiguous.
    pub(crate) strides: Option<Vec<usize>>,
    /// Checksum of these bytes, where the file has one.
    pub(crate) crc: Option<u32>,
}

impl LazyTensor {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads the values, widened or rounded to fp32, in row-major order.
    pub fn read(&self) -> Result<Vec<f32>, ModelError> {
        let damaged = || {
            self.source.damaged(format!(
                "a tensor of shape {:?} does not fit its {} bytes",
                self.shape, self.length
            ))
        };
        let count = self
            .shape
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size))
            .ok_or_else(damaged)?;
        let stored = match &self.strides {
            Some(_) if count == 0 => 0,
            Some(strides) => self
                .shape
                .iter()
                .zip(strides)
                .try_fold(0usize, |last, (size, stride)| {
                    last.checked_add((size - 1).checked_mul(*stride)?)
                })
                .and_then(|last| last.checked_add(1))
                .ok_or_else(damaged)?,
            None => count,
        };
        let bytes = stored.checked_mul(self.element.size()).ok_or_else(damaged)?;
        if bytes as u64 > self.length {
            return Err(damaged());
        }
        let data = self.source.read(self.offset, bytes)?;
        // A tensor may be a part of what the checksum is of.
        let whole = bytes as u64 == self.length;
        if self.crc.is_some_and(|crc| whole && crc32fast::hash(&data) != crc) {
            return Err(self.source.damaged(format!(
                "the bytes of a tensor of shape {:?} do not match their checksum: the file is \
                 damaged, obtain it again",
                self.shape
            )));
        }
        let values = decode(self.element, &data);
        match &self.strides {
            // A zero stride repeats elements: what comes out may be far larger than the file.
            Some(_) if count > stored.saturating_mul(1024) => Err(damaged()),
            Some(strides) => Ok(gather(&values, &self.shape, strides)),
            None => Ok(values),
        }
    }
}

fn decode(element: ElementType, bytes: &[u8]) -> Vec<f32> {
    macro_rules! convert {
        ($size:literal, $from:expr) => {
            bytes.as_chunks::<$size>().0.iter().map(|chunk| $from(*chunk)).collect()
        };
    }
    match element {
        ElementType::F32 => convert!(4, f32::from_le_bytes),
        ElementType::F64 => convert!(8, |bytes| f64::from_le_bytes(bytes) as f32),
        ElementType::F16 => convert!(2, |bytes| f16::from_le_bytes(bytes).to_f32()),
        ElementType::Bf16 => convert!(2, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        ElementType::I64 => convert!(8, |bytes| i64::from_le_bytes(bytes) as f32),
        ElementType::I32 => convert!(4, |bytes| i32::from_le_bytes(bytes) as f32),
        ElementType::I16 => convert!(2, |bytes| f32::from(i16::from_le_bytes(bytes))),
        ElementType::I8 => bytes.iter().map(|byte| f32::from(*byte as i8)).collect(),
        ElementType::U8 | ElementType::Bool => bytes.iter().map(|byte| f32::from(*byte)).collect(),
    }
}

fn gather(values: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let mut index = vec![0; shape.len()];
    let mut position = 0;
    let count = shape.iter().product();
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        out.push(values[position]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            position += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
