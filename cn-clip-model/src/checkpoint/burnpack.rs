//! Records of Burn (`.bpk`): what [`Module::save_file`](burn::module::Module::save_file) writes.
//!
//! Keys are paths in the module, and tensors lie as the module has them. The container is that of
//! the `burn-pack` crate, which writes it; its reader does not say where in the file a tensor
//! lies, so the header is read here.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::DType;
use burn_pack::{
    Bytes, FORMAT_VERSION, HEADER_SIZE, Header, MAX_CBOR_RECURSION_DEPTH, MAX_METADATA_SIZE,
    MAX_TENSOR_COUNT, Tensor, Writer, aligned_data_section_start,
};
use serde::Deserialize;

use super::{
    export::Export,
    metadata,
    names::StateDict,
    source::Source,
    state_dict::Checkpoint,
    tensor::{Data, ElementType, LazyTensor, Stored},
};
use crate::ModelError;

#[derive(Deserialize)]
struct Contents {
    tensors: BTreeMap<String, Descriptor>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Descriptor {
    dtype: DType,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

pub(super) fn open(source: &Arc<Source>) -> Result<Checkpoint, ModelError> {
    let damaged = |reason: String| source.damaged(format!("damaged Burn record ({reason})"));
    let head = source.read(0, HEADER_SIZE)?;
    let header = Header::from_bytes(&head).map_err(|error| damaged(error.to_string()))?;
    if header.version > FORMAT_VERSION || header.metadata_size > MAX_METADATA_SIZE {
        return Err(damaged(format!(
            "version {}, {} bytes of metadata",
            header.version, header.metadata_size
        )));
    }
    let length = header.metadata_size as usize;
    let bytes = source.read(HEADER_SIZE as u64, length)?;
    let contents: Contents =
        ciborium::de::from_reader_with_recursion_limit(&bytes[..], MAX_CBOR_RECURSION_DEPTH)
            .map_err(|error| damaged(error.to_string()))?;
    if contents.tensors.len() > MAX_TENSOR_COUNT {
        return Err(damaged(format!("{} tensors", contents.tensors.len())));
    }
    let start = aligned_data_section_start(length) as u64;
    let mut state_dict = StateDict::new();
    for (path, descriptor) in contents.tensors {
        let element = element(descriptor.dtype)
            .ok_or_else(|| damaged(format!("`{path}` has type {:?}", descriptor.dtype)))?;
        let (from, to) = descriptor.data_offsets;
        let range = start.checked_add(from).zip(to.checked_sub(from));
        let (offset, length) = range.ok_or_else(|| damaged(format!("`{path}` lies nowhere")))?;
        let shape = descriptor.shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        let shape: Option<Vec<usize>> = shape;
        let shape = shape.ok_or_else(|| damaged(format!("`{path}` is too large")))?;
        let source = source.clone();
        let data = Data::Stored(Stored { source, offset, length, strides: None, crc: None });
        let tensor = LazyTensor { element, shape, data };
        let (key, transposed) = official_key(&path, tensor.shape.len());
        state_dict.push((key, if transposed { tensor.transposed() } else { tensor }));
    }
    let name = source.path.display().to_string();
    let (progress, config) = metadata::read(|key| contents.metadata.get(key).map(String::as_str));
    Ok(Checkpoint { name, state_dict, progress, optimizer: None, config })
}

/// The official key of a path in the module, and whether the matrix lies transposed there.
fn official_key(path: &str, rank: usize) -> (String, bool) {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('.') {
        let before = parts.last().copied();
        parts.push(match part {
            "Vit" | "ResNet" if before == Some("visual") => continue,
            "self_attention" => "self",
            "layer_norm" => "LayerNorm",
            "conv" if before == Some("downsample") => "0",
            "norm" if before == Some("downsample") => "1",
            "gamma" => "weight",
            "beta" => "bias",
            part => part,
        });
    }
    let linear = rank == 2 && parts.last() == Some(&"weight") && !parts.contains(&"embeddings");
    let key = parts.join(".");
    (
        key.replace("in_proj.weight", "in_proj_weight").replace("in_proj.bias", "in_proj_bias"),
        linear,
    )
}

/// Writes a record to a file that exists.
pub(super) fn write(
    path: &Path,
    exports: Vec<Export>,
    metadata: BTreeMap<String, String>,
    written: impl Fn(u64) + Send + Sync + 'static,
) -> Result<(), ModelError> {
    // The library carries no errors of ours.
    let failure: Arc<Mutex<Option<ModelError>>> = Arc::default();
    let written = Arc::new(written);
    let tensors = exports
        .into_iter()
        .map(|export| {
            let (failure, written) = (failure.clone(), written.clone());
            let (name, shape, length) =
                (export.key.clone(), export.shape.clone(), export.byte_count());
            Tensor::deferred(name, dtype(export.element), shape, None, length, move || {
                let bytes = export.bytes().map_err(|error| {
                    let reason = burn_pack::Error::IoError(error.to_string());
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    reason
                })?;
                written(bytes.len() as u64);
                Ok(Bytes::from_bytes_vec(bytes))
            })
        })
        .collect();
    let mut writer = Writer::new(tensors).auto_extension(false);
    for (key, value) in metadata {
        writer = writer.with_metadata(&key, &value);
    }
    writer.write_to_file_in_place(path).map_err(|error| {
        let own = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        own.unwrap_or_else(|| ModelError::format(path, error.to_string()))
    })
}

fn element(dtype: DType) -> Option<ElementType> {
    Some(match dtype {
        DType::F64 => ElementType::F64,
        DType::F32 | DType::Flex32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::I16 => ElementType::I16,
        DType::I8 => ElementType::I8,
        DType::U8 => ElementType::U8,
        _ => return None,
    })
}

fn dtype(element: ElementType) -> DType {
    match element {
        ElementType::F64 => DType::F64,
        ElementType::F32 => DType::F32,
        ElementType::F16 => DType::F16,
        ElementType::Bf16 => DType::BF16,
        ElementType::I64 => DType::I64,
        ElementType::I32 => DType::I32,
        ElementType::I16 => DType::I16,
        ElementType::I8 => DType::I8,
        ElementType::U8 | ElementType::Bool => DType::U8,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        Clip, ClipConfig,
        checkpoint::{Layout, parameters},
        config::published_models,
    };

    #[test]
    fn paths_become_the_official_keys() {
        for name in published_models() {
            let config = ClipConfig::published(name).unwrap();
            for spec in parameters(&Clip::init(&config, &Device::default(), 0)) {
                let expected = (spec.key.clone(), spec.layout == Layout::Transposed);
                assert_eq!(official_key(&spec.path, spec.shape.len()), expected, "{}", spec.path);
            }
        }
    }
}
