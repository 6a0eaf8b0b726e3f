//! Arrays of numpy (its format description: numpy/lib/format.py, versions 1 to 3).

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
};

use super::{
    FeatureError,
    block_file::{BlockFile, Layout, Width},
    ids,
    part::Part,
};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes before the values in files that we write.
pub(super) const HEADER: usize = 128;
/// Bytes of a header that are read at most.
const MAX_HEADER: usize = 1 << 20;

/// Opens an array of floats `[rows, dim]` with the ids beside it.
pub(super) fn open(path: &Path) -> Result<BlockFile, FeatureError> {
    let mut file = File::open(path).map_err(FeatureError::read(path))?;
    let length = file.metadata().map_err(FeatureError::read(path))?.len();
    if length == 0 {
        return Err(FeatureError::Empty { path: path.to_owned() });
    }
    let layout = read_header(&mut file)
        .map_err(FeatureError::read(path))?
        .map_err(|reason| FeatureError::file(path, reason))?;
    if layout.length().and_then(|bytes| bytes.checked_add(layout.offset)) != Some(length) {
        let Layout { rows, dim, .. } = layout;
        let reason = format!(
            "is cut off or damaged: {rows} rows of {dim} values do not make a file of {length} \
             bytes; extract the features again"
        );
        return Err(FeatureError::file(path, reason));
    }
    let (ids, ids_path) = ids::read_beside(path)?;
    BlockFile::new(path, file, layout, ids, &ids_path.display().to_string())
}

fn read_header(file: &mut File) -> io::Result<Result<Layout, String>> {
    let mut start = Vec::new();
    Read::by_ref(file).take(12).read_to_end(&mut start)?;
    let (offset, length) = match start.as_slice() {
        [magic @ .., 1, _, a, b, _, _] if magic == MAGIC => {
            (10, u16::from_le_bytes([*a, *b]).into())
        }
        [magic @ .., 2 | 3, _, a, b, c, d] if magic == MAGIC => {
            (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize)
        }
        _ => return Ok(Err("is no array of numpy, or is cut off".to_owned())),
    };
    if length > MAX_HEADER {
        return Ok(Err("has a header of more than 1 MiB: is it damaged?".to_owned()));
    }
    let mut header = start.split_off(offset);
    let left = length.saturating_sub(header.len()) as u64;
    Read::by_ref(file).take(left).read_to_end(&mut header)?;
    if header.len() != length {
        return Ok(Err("is cut off in its header".to_owned()));
    }
    let text = String::from_utf8_lossy(&header);
    Ok(parse_header(&text).map(|(width, rows, dim)| {
        let offset = (offset + length) as u64;
        Layout { offset, rows, dim, width }
    }))
}

/// Width, rows and values per row of `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(text: &str) -> Result<(Width, usize, usize), String> {
    let after = |key: &str| {
        let quoted = [format!("'{key}'"), format!("\"{key}\"")];
        let found = quoted.iter().find_map(|key| text.split_once(key.as_str()));
        let value = found.and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
        value.map(str::trim_start).ok_or_else(|| format!("has no `{key}` in its header"))
    };
    let descr = after("descr")?;
    let width = match descr.get(1..4) {
        Some("<f2") => Width::F16,
        Some("<f4") => Width::F32,
        Some("<f8") => Width::F64,
        _ => {
            let found = descr.split(',').next().unwrap_or_default();
            return Err(format!("holds {found}: save little-endian floats, astype('<f4')"));
        }
    };
    if !after("fortran_order")?.starts_with("False") {
        return Err("is in Fortran order: save np.ascontiguousarray of it".to_owned());
    }
    let shape = after("shape")?;
    let inner = shape.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let sizes: Option<Vec<usize>> = inner.and_then(|(inner, _)| {
        let sizes = inner.split(',').map(str::trim).filter(|size| !size.is_empty());
        sizes.map(|size| size.parse().ok()).collect()
    });
    match sizes.as_deref() {
        Some([rows, dim]) => Ok((width, *rows, *dim)),
        Some(other) => Err(format!("is of shape {other:?}: features are [rows, values]")),
        None => Err("has no shape in its header".to_owned()),
    }
}

/// Completes a part, whose values begin after [`HEADER`] bytes.
pub(super) fn complete(part: &mut Part) -> io::Result<()> {
    let (rows, dim) = (part.rows(), part.dim());
    let fields = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let text = format!("{fields:<width$}\n", width = HEADER - 11);
    let mut file = part.values()?;
    file.seek(io::SeekFrom::Start(0))?;
    file.write_all(MAGIC)?;
    file.write_all(&[1, 0])?;
    file.write_all(&(text.len() as u16).to_le_bytes())?;
    file.write_all(text.as_bytes())
}
