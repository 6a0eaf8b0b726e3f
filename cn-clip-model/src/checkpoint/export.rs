//! Tensors on their way into a file: made one at a time, when their turn comes.

use std::ops::Range;

use half::{bf16, f16};

use super::tensor::{ElementType, LazyTensor};
use crate::{ModelError, pos_embed::resize};

/// How the values are made from those of the source.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// The same values.
    Same,
    /// Rows and columns exchanged.
    Transposed,
    /// Some rows.
    Rows(Range<usize>),
    /// A positional embedding of another grid: old and new side.
    Grid(usize, usize),
}

/// A tensor to be written.
#[derive(Debug, Clone)]
pub(super) struct Export {
    pub key: String,
    pub shape: Vec<usize>,
    pub element: ElementType,
    pub tensor: LazyTensor,
    pub view: View,
}

impl Export {
    /// Number of bytes in the file.
    pub fn byte_count(&self) -> usize {
        self.shape.iter().product::<usize>() * self.element.size()
    }

    /// The bytes, which are read and converted now.
    pub fn bytes(&self) -> Result<Vec<u8>, ModelError> {
        if self.element == self.tensor.element
            && matches!(self.view, View::Same)
            && let Some(bytes) = self.tensor.read_bytes()?
        {
            return Ok(bytes);
        }
        let values = match &self.view {
            View::Same => self.tensor.read()?,
            View::Transposed => self.tensor.read_transposed()?,
            View::Rows(range) => {
                let width: usize = self.tensor.shape[1..].iter().product();
                match self.tensor.rows(range.clone()) {
                    Some(rows) => rows.read()?,
                    None => self.tensor.read()?[range.start * width..range.end * width].to_vec(),
                }
            }
            View::Grid(old, new) => {
                let width = self.tensor.shape[1];
                resize(&self.tensor.read()?, width, *old, *new)
            }
        };
        encode(&values, self.element).map_err(|value| {
            let reason =
                format!("`{}` holds {value}, which {:?} cannot hold", self.key, self.element);
            ModelError::Unrepresentable { reason }
        })
    }
}

/// Values as little-endian bytes; the value that is finite and would not be, if there is one.
fn encode(values: &[f32], element: ElementType) -> Result<Vec<u8>, f32> {
    let mut bytes = vec![0; values.len() * element.size()];
    macro_rules! convert {
        ($size:literal, $to:expr) => {
            for (out, value) in bytes.as_chunks_mut::<$size>().0.iter_mut().zip(values) {
                *out = $to(*value).to_le_bytes();
            }
        };
    }
    match element {
        ElementType::F64 => convert!(8, f64::from),
        ElementType::F32 => convert!(4, |value: f32| value),
        ElementType::F16 => {
            if let Some(value) =
                values.iter().find(|value| value.is_finite() && !f16::from_f32(**value).is_finite())
            {
                return Err(*value);
            }
            convert!(2, f16::from_f32);
        }
        ElementType::Bf16 => convert!(2, bf16::from_f32),
        ElementType::I64 => convert!(8, |value| value as i64),
        ElementType::I32 => convert!(4, |value| value as i32),
        ElementType::I16 => convert!(2, |value| value as i16),
        ElementType::I8 => convert!(1, |value| value as i8),
        ElementType::U8 | ElementType::Bool => convert!(1, |value| value as u8),
    }
    Ok(bytes)
}
