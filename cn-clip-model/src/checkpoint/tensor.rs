//! A tensor that still lies in its file.

use std::{ops::Range, sync::Arc};

use half::{bf16, f16};

use super::{keys::transpose, source::Source};
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

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// A tensor of a checkpoint: type and shape known, values read on demand.
#[derive(Debug, Clone)]
pub struct LazyTensor {
    /// Element type in the file.
    pub element: ElementType,
    /// Shape.
    pub shape: Vec<usize>,
    pub(crate) data: Data,
}

/// Where the values are.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// In a file.
    Stored(Stored),
    /// In tensors whose rows follow each other.
    Joined(Vec<LazyTensor>),
}

/// A range of a file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub source: Arc<Source>,
    /// Absolute position of the first byte.
    pub offset: u64,
    /// Bytes from `offset` that belong to the storage.
    pub length: u64,
    /// Row-major strides in elements, if the tensor is not contiguous.
    pub strides: Option<Vec<usize>>,
    /// Checksum of these bytes, where the file has one.
    pub crc: Option<u32>,
}

/// Bytes that are read at a time: they stay in the processor's cache.
const CHUNK: usize = 1 << 18;
/// Side of the squares in which a matrix is transposed.
const TILE: usize = 32;

impl LazyTensor {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the bytes that the shape needs are in the file.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        match &self.data {
            Data::Stored(stored) => match &stored.strides {
                None => stored.size(self.element, &self.shape).map(drop),
                Some(strides) => {
                    let span = stored.span(&self.shape, strides)?;
                    stored.size(self.element, &[span]).map(drop)
                }
            },
            Data::Joined(parts) => parts.iter().try_for_each(Self::check),
        }
    }

    /// Reads the values, widened or rounded to fp32, in row-major order.
    pub fn read(&self) -> Result<Vec<f32>, ModelError> {
        match &self.data {
            Data::Stored(stored) => stored.read(self.element, &self.shape),
            Data::Joined(parts) => {
                let mut values = Vec::with_capacity(self.count());
                for part in parts {
                    values.extend(part.read()?);
                }
                Ok(values)
            }
        }
    }

    /// Reads the values of a matrix in column-major order, which is its transpose.
    pub fn read_transposed(&self) -> Result<Vec<f32>, ModelError> {
        let &[rows, columns] = &self.shape[..] else { return self.read() };
        match &self.data {
            Data::Stored(stored) => match stored.is_transposed(&self.shape) {
                true => stored.read_contiguous(self.element, &[columns, rows]),
                false if stored.strides.is_none() => {
                    stored.read_transposed(self.element, rows, columns)
                }
                false => Ok(transpose(&self.read()?, rows, columns)),
            },
            Data::Joined(_) => Ok(transpose(&self.read()?, rows, columns)),
        }
    }

    /// Reads the bytes as they lie in the file; `None` if they lie there in another order.
    pub(crate) fn read_bytes(&self) -> Result<Option<Vec<u8>>, ModelError> {
        let Data::Stored(stored @ Stored { strides: None, .. }) = &self.data else {
            return Ok(None);
        };
        let count = stored.size(self.element, &self.shape)?;
        let mut bytes = Vec::with_capacity(count);
        stored.chunks(count, 1, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(Some(bytes))
    }

    /// A stored matrix with rows and columns exchanged; anything else as it is.
    pub(crate) fn transposed(mut self) -> Self {
        if let (Data::Stored(stored), &[rows, columns]) = (&mut self.data, &self.shape[..]) {
            let strides = stored.strides.take().unwrap_or(vec![columns, 1]);
            let strides = vec![strides[1], strides[0]];
            self.shape = vec![columns, rows];
            stored.strides = (strides != [rows, 1]).then_some(strides);
        }
        self
    }

    /// Some rows of a contiguous stored tensor; `None` if it is another or has fewer.
    pub(crate) fn rows(&self, range: Range<usize>) -> Option<Self> {
        let Data::Stored(stored @ Stored { strides: None, .. }) = &self.data else { return None };
        let (count, shape) = self.shape.split_first()?;
        if range.end > *count || range.start > range.end {
            return None;
        }
        let row = shape
            .iter()
            .try_fold(self.element.size() as u64, |row, size| row.checked_mul(*size as u64))?;
        let skip = row.checked_mul(range.start as u64).filter(|skip| *skip <= stored.length)?;
        let data = Data::Stored(Stored {
            offset: stored.offset + skip,
            length: stored.length - skip,
            crc: stored.crc.filter(|_| range.start == 0),
            ..stored.clone()
        });
        let shape = [&[range.len()], shape].concat();
        Some(Self { element: self.element, shape, data })
    }

    /// The rows of several tensors, one after the other; `None` if the shapes do not allow it.
    pub(crate) fn join(parts: Vec<Self>) -> Option<Self> {
        let first = parts.first()?;
        let (element, inner) = (first.element, first.shape.get(1..)?.to_vec());
        let mut rows = 0usize;
        for part in &parts {
            if part.element != element || part.shape.get(1..)? != inner {
                return None;
            }
            rows = rows.checked_add(part.shape[0])?;
        }
        Some(Self { element, shape: [&[rows], &inner[..]].concat(), data: Data::Joined(parts) })
    }
}

impl Stored {
    fn damaged(&self, shape: &[usize]) -> ModelError {
        let length = self.length;
        self.source.damaged(format!("a tensor of shape {shape:?} does not fit its {length} bytes"))
    }

    /// Bytes of a contiguous tensor, which lie inside the storage and the file.
    fn size(&self, element: ElementType, shape: &[usize]) -> Result<usize, ModelError> {
        let size = shape
            .iter()
            .try_fold(element.size(), |product, size| product.checked_mul(*size))
            .filter(|size| *size as u64 <= self.length)
            .ok_or_else(|| self.damaged(shape))?;
        self.source.check(self.offset, size)?;
        Ok(size)
    }

    fn is_transposed(&self, shape: &[usize]) -> bool {
        match (&self.strides, shape) {
            (Some(strides), &[rows, _]) => strides[..] == [1, rows],
            _ => false,
        }
    }

    /// Reads `count` bytes, a whole number of `row`s at a time, and compares the checksum.
    fn chunks(
        &self,
        count: usize,
        row: usize,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ModelError> {
        let step = (CHUNK / row.max(1)).max(1) * row.max(1);
        let mut buffer = vec![0; step.min(count)];
        // A tensor may be a part of what the checksum is of.
        let crc = self.crc.filter(|_| count as u64 == self.length);
        let mut hasher = crc32fast::Hasher::new();
        let mut done = 0;
        while done < count {
            let chunk = &mut buffer[..step.min(count - done)];
            self.source.fill(self.offset + done as u64, chunk)?;
            if crc.is_some() {
                hasher.update(chunk);
            }
            each(chunk);
            done += chunk.len();
        }
        match crc {
            Some(crc) if hasher.finalize() != crc => Err(self.source.damaged(format!(
                "{count} bytes of a tensor do not match their checksum: the file is damaged, \
                 obtain it again"
            ))),
            _ => Ok(()),
        }
    }

    fn read(&self, element: ElementType, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        match (&self.strides, shape) {
            (None, _) => self.read_contiguous(element, shape),
            (Some(_), &[rows, columns]) if self.is_transposed(shape) => {
                self.read_transposed(element, columns, rows)
            }
            (Some(strides), _) => self.gather(element, shape, strides),
        }
    }

    fn read_contiguous(
        &self,
        element: ElementType,
        shape: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let size = self.size(element, shape)?;
        let mut values = Vec::with_capacity(size / element.size());
        self.chunks(size, element.size(), |chunk| decode(element, chunk, &mut values))?;
        Ok(values)
    }

    /// The transpose of a contiguous matrix.
    fn read_transposed(
        &self,
        element: ElementType,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let size = self.size(element, &[rows, columns])?;
        let mut values = vec![0.0; size / element.size()];
        let (mut top, mut chunk) = (0, Vec::new());
        self.chunks(size, columns * element.size(), |bytes| {
            chunk.clear();
            decode(element, bytes, &mut chunk);
            let count = chunk.len() / columns;
            for row in (0..count).step_by(TILE) {
                for column in (0..columns).step_by(TILE) {
                    for column in column..(column + TILE).min(columns) {
                        let out = &mut values[column * rows + top..][..count];
                        for row in row..(row + TILE).min(count) {
                            out[row] = chunk[row * columns + column];
                        }
                    }
                }
            }
            top += count;
        })?;
        Ok(values)
    }

    /// Elements from the first to the last one of a tensor with strides.
    fn span(&self, shape: &[usize], strides: &[usize]) -> Result<usize, ModelError> {
        let damaged = || self.damaged(shape);
        let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let count = count.ok_or_else(damaged)?;
        if count == 0 {
            return Ok(0);
        }
        let last = shape.iter().zip(strides).try_fold(0usize, |last, (size, stride)| {
            last.checked_add((size - 1).checked_mul(*stride)?)
        });
        let span = last.and_then(|last| last.checked_add(1)).ok_or_else(damaged)?;
        // A zero stride repeats elements: what comes out may be far larger than the file.
        if count > span.saturating_mul(1024) {
            return Err(damaged());
        }
        Ok(span)
    }

    fn gather(
        &self,
        element: ElementType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let span = self.span(shape, strides)?;
        let values = self.read_contiguous(element, &[span])?;
        let count = shape.iter().product();
        let mut index = vec![0; shape.len()];
        let mut position = 0;
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
        Ok(out)
    }
}

fn decode(element: ElementType, bytes: &[u8], values: &mut Vec<f32>) {
    macro_rules! convert {
        ($size:literal, $from:expr) => {
            values.extend(bytes.as_chunks::<$size>().0.iter().map(|chunk| $from(*chunk)))
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
        ElementType::I8 => values.extend(bytes.iter().map(|byte| f32::from(*byte as i8))),
        ElementType::U8 | ElementType::Bool => {
            values.extend(bytes.iter().map(|byte| f32::from(*byte)));
        }
    }
}
