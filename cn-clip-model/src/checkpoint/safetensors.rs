//! Safetensors files with official keys.

use std::sync::Arc;

use ::safetensors::{Dtype, tensor::Metadata};

use super::{
    state_dict::{Checkpoint, Progress},
    tensor::{ElementType, LazyTensor, Source},
};
use crate::ModelError;

/// Largest header that is read, in bytes.
const MAX_HEADER: u64 = 100 << 20;

pub(super) fn open(source: &Arc<Source>) -> Result<Checkpoint, ModelError> {
    let damaged = |reason: String| source.damaged(format!("damaged safetensors file ({reason})"));
    let length: [u8; 8] =
        source.read(0, 8)?.try_into().map_err(|_| damaged("no header".to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > source.length {
        return Err(damaged(format!("a header of {length} bytes")));
    }
    let head = source.read(0, 8 + length as usize)?;
    let metadata: Metadata =
        serde_json::from_slice(&head[8..]).map_err(|error| damaged(error.to_string()))?;
    let mut state_dict = Vec::new();
    for key in metadata.offset_keys() {
        let Some(info) = metadata.info(&key) else { continue };
        let element = element(info.dtype)
            .ok_or_else(|| damaged(format!("`{key}` has type {:?}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        state_dict.push((
            key,
            LazyTensor {
                element,
                shape: info.shape.clone(),
                source: source.clone(),
                offset: 8 + length + start as u64,
                length: (end - start) as u64,
                strides: None,
                crc: None,
            },
        ));
    }
    let name = source.path.display().to_string();
    Ok(Checkpoint { name, state_dict, progress: Progress::default(), optimizer: None })
}

fn element(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}
