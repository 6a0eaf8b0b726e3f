//! Safetensors files.

use std::{collections::HashMap, io::Write, sync::Arc};

use ::safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::{
    export::Export,
    metadata,
    source::Source,
    state_dict::Checkpoint,
    tensor::{Data, ElementType, LazyTensor, Stored},
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
    let contents: Metadata =
        serde_json::from_slice(&head[8..]).map_err(|error| damaged(error.to_string()))?;
    let mut state_dict = Vec::new();
    for key in contents.offset_keys() {
        let Some(info) = contents.info(&key) else { continue };
        let element = element(info.dtype)
            .ok_or_else(|| damaged(format!("`{key}` has type {:?}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let data = Data::Stored(Stored {
            source: source.clone(),
            offset: (8 + length).saturating_add(start as u64),
            length: end.saturating_sub(start) as u64,
            strides: None,
            crc: None,
        });
        state_dict.push((key, LazyTensor { element, shape: info.shape.clone(), data }));
    }
    let name = source.path.display().to_string();
    let entries = contents.metadata().as_ref();
    let (progress, config) =
        metadata::read(|key| entries.and_then(|entries| entries.get(key)).map(String::as_str));
    Ok(Checkpoint { name, state_dict, progress, optimizer: None, config })
}

/// Writes a file; `failed` makes errors of writing.
pub(super) fn write(
    out: &mut impl Write,
    mut exports: Vec<Export>,
    metadata: HashMap<String, String>,
    failed: impl Fn(std::io::Error) -> ModelError,
    written: impl Fn(u64),
) -> Result<(), ModelError> {
    // Large elements first, so that all of them are aligned.
    exports.sort_by_key(|export| std::cmp::Reverse(export.element.size()));
    let mut end = 0;
    let infos = exports.iter().map(|export| {
        let start = end;
        end += export.byte_count();
        let info = TensorInfo {
            dtype: dtype(export.element),
            shape: export.shape.clone(),
            data_offsets: (start, end),
        };
        (export.key.clone(), info)
    });
    let invalid = |error: String| failed(std::io::Error::other(error));
    let contents = Metadata::new(Some(metadata), infos.collect());
    let contents = contents.map_err(|error| invalid(error.to_string()))?;
    let mut header = serde_json::to_vec(&contents).map_err(|error| invalid(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
    out.write_all(&header).map_err(&failed)?;
    for export in &exports {
        let bytes = export.bytes()?;
        out.write_all(&bytes).map_err(&failed)?;
        written(bytes.len() as u64);
    }
    Ok(())
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

fn dtype(element: ElementType) -> Dtype {
    match element {
        ElementType::F64 => Dtype::F64,
        ElementType::F32 => Dtype::F32,
        ElementType::F16 => Dtype::F16,
        ElementType::Bf16 => Dtype::BF16,
        ElementType::I64 => Dtype::I64,
        ElementType::I32 => Dtype::I32,
        ElementType::I16 => Dtype::I16,
        ElementType::I8 => Dtype::I8,
        ElementType::U8 => Dtype::U8,
        ElementType::Bool => Dtype::BOOL,
    }
}
