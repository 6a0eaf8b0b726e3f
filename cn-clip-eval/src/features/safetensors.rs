//! Tensors `features` `[rows, dim]` and `ids` in a safetensors file.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, Write},
    path::Path,
};

use ::safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use cn_clip_data::{Id, pread::read_at};

use super::{
    FeatureError, Modality,
    block_file::{BlockFile, Layout, Width},
    ids,
    part::Part,
};

/// Bytes before the values in files that we write: room for any header.
pub(super) const HEADER: usize = 512;
/// Bytes of a header that are read at most.
const MAX_HEADER: u64 = 100 << 20;

/// Opens a file. Ids are int64 `[rows]`, or bytes: one JSON number or string per line.
pub(super) fn open(path: &Path) -> Result<BlockFile, FeatureError> {
    let wrong = |reason: String| FeatureError::file(path, reason);
    let mut file = File::open(path).map_err(FeatureError::read(path))?;
    let length = file.metadata().map_err(FeatureError::read(path))?.len();
    if length == 0 {
        return Err(FeatureError::Empty { path: path.to_owned() });
    }
    let mut start = [0; 8];
    let cut = || wrong("is no safetensors file, or is cut off".to_owned());
    file.read_exact(&mut start).map_err(|_| cut())?;
    let header = u64::from_le_bytes(start);
    if header > MAX_HEADER || header > length - 8 {
        return Err(cut());
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes).map_err(FeatureError::read(path))?;
    let metadata: Metadata = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("has a damaged header: {error}")))?;
    let data = 8 + header;
    if data + metadata.data_len() as u64 != length {
        return Err(wrong("is cut off or damaged: extract the features again".to_owned()));
    }
    let tensor = |name: &str| {
        metadata.info(name).ok_or_else(|| wrong(format!("has no tensor `{name}`: it needs both")))
    };
    let features = tensor("features")?;
    let width = match features.dtype {
        Dtype::F16 => Width::F16,
        Dtype::F32 => Width::F32,
        Dtype::F64 => Width::F64,
        other => return Err(wrong(format!("has features of {other:?}: save them as F32"))),
    };
    let [rows, dim] = features.shape[..] else {
        let shape = &features.shape;
        return Err(wrong(format!("has features of shape {shape:?}: they are [rows, values]")));
    };
    let offset = data + features.data_offsets.0 as u64;
    let ids = read_ids(path, &file, tensor("ids")?, data)?;
    BlockFile::new(path, file, Layout { offset, rows, dim, width }, ids, "the tensor `ids`")
}

fn read_ids(
    path: &Path,
    file: &File,
    tensor: &TensorInfo,
    data: u64,
) -> Result<Vec<Id>, FeatureError> {
    let (start, end) = tensor.data_offsets;
    let mut bytes = vec![0; end - start];
    read_at(file, &mut bytes, data + start as u64).map_err(FeatureError::read(path))?;
    match (tensor.dtype, &tensor.shape[..]) {
        (Dtype::I64, [_]) => Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|value| Id::Int(i64::from_le_bytes(*value)))
            .collect()),
        (Dtype::U8, [_]) => ids::parse(&bytes, path),
        (other, shape) => {
            let reason = format!(
                "has ids of {other:?} {shape:?}: expected I64 [rows], or U8 [bytes] with one JSON \
                 number or string per line"
            );
            Err(FeatureError::file(path, reason))
        }
    }
}

/// Completes a part, whose values begin after [`HEADER`] bytes: the ids go to its end and the
/// header to its beginning.
pub(super) fn complete(part: &mut Part, modality: Modality) -> io::Result<()> {
    let (rows, dim) = (part.rows(), part.dim());
    let integers = part.only_integers();
    let mut ids = part.stored_ids()?;
    let mut file = BufWriter::new(part.values()?);
    file.seek(io::SeekFrom::End(0))?;
    let mut length = 0;
    while let Some((line, id)) = ids.next_line()? {
        match (integers, id) {
            (true, Id::Int(id)) => file.write_all(&id.to_le_bytes())?,
            _ => file.write_all(line)?,
        }
        length += line.len();
    }
    let values = rows * dim * 4;
    let (dtype, shape, size) =
        if integers { ("I64", rows, rows * 8) } else { ("U8", length, length) };
    let header = serde_json::json!({
        "__metadata__": {"modality": modality.to_string()},
        "features": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, values]},
        "ids": {"dtype": dtype, "shape": [shape], "data_offsets": [values, values + size]},
    });
    let header = format!("{:<width$}", header.to_string(), width = HEADER - 8);
    file.seek(io::SeekFrom::Start(0))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.flush()
}
