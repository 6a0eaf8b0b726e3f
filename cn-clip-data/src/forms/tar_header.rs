//! The members of a tar file: ustar, pax and GNU headers.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use crate::{error::DataError, pread::read_at};

/// Bytes of a header, and what the data of a member are padded to.
pub(super) const BLOCK: u64 = 512;
/// Bytes of a long name or of a pax header at most.
const MAX_EXTENSION: u64 = 1 << 20;

/// A regular file in a tar file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub name: String,
    /// Position of its data.
    pub offset: u64,
    pub length: u64,
}

/// The regular files of a tar file, in order. Reads nothing but headers.
pub(super) struct Members<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
    position: u64,
    done: bool,
}

impl<'a> Members<'a> {
    pub fn new(path: &'a Path, file: &'a File) -> Result<Self, DataError> {
        let length = file.metadata().map_err(DataError::io(path))?.len();
        Ok(Self { path, file, length, position: 0, done: false })
    }

    fn wrong(&self, at: u64, reason: &str) -> DataError {
        DataError::file(self.path, format!("the tar header at byte {at} {reason}"))
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; length as usize];
        read_at(self.file, &mut bytes, offset).map_err(DataError::io(PathBuf::from(self.path)))?;
        Ok(bytes)
    }

    /// The next regular file; `None` at the end.
    fn advance(&mut self) -> Result<Option<Member>, DataError> {
        let mut long_name = None;
        let mut pax = HashMap::new();
        loop {
            let at = self.position;
            // Some writers leave the blocks of zeros at the end out.
            if at >= self.length && long_name.is_none() && pax.is_empty() {
                return Ok(None);
            }
            if self.length.saturating_sub(at) < BLOCK {
                return Err(self.wrong(at, "is cut off: copy or make the shard again"));
            }
            let header = self.read(at, BLOCK)?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header(&header);
            if !header.checksum_fits() {
                return Err(self.wrong(at, "is damaged: is this an uncompressed tar file?"));
            }
            let kind = header.kind();
            let mut size =
                header.size().ok_or_else(|| self.wrong(at, "has a size that is no number"))?;
            if let (true, Some(text)) = (is_file(kind), pax.get("size")) {
                let text: &String = text;
                let parsed =
                    text.parse().map_err(|_| self.wrong(at, "has a pax size of no number"));
                size = parsed?;
            }
            let (offset, room) = (at + BLOCK, self.length - at - BLOCK);
            if size > room {
                let name = header.name();
                let reason = format!(
                    "(member `{name}`) promises {size} bytes where {room} are left: the shard is \
                     cut off, copy or make it again"
                );
                return Err(self.wrong(at, &reason));
            }
            self.position = offset + size.div_ceil(BLOCK) * BLOCK;
            if matches!(kind, b'L' | b'x') && size > MAX_EXTENSION {
                return Err(self.wrong(at, "is a name or pax header of more than 1 MiB"));
            }
            match kind {
                b'L' => long_name = Some(text_of(&self.read(offset, size)?)),
                b'x' => {
                    pax = pax_records(&self.read(offset, size)?)
                        .ok_or_else(|| self.wrong(at, "is a malformed pax header"))?;
                }
                b'S' => return Err(self.wrong(at, "is a sparse file, which is not supported")),
                _ if is_file(kind) => {
                    let name = pax.remove("path").or(long_name);
                    let name = name.unwrap_or_else(|| header.name());
                    return Ok(Some(Member { name, offset, length: size }));
                }
                // Folders, links, devices, global headers, long names of links.
                b'K' | b'g' => {}
                _ => (long_name, pax) = (None, HashMap::new()),
            }
        }
    }
}

impl Iterator for Members<'_> {
    type Item = Result<Member, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let member = self.advance().transpose();
        self.done = !matches!(member, Some(Ok(_)));
        member
    }
}

fn is_file(kind: u8) -> bool {
    matches!(kind, b'0' | 0 | b'7')
}

/// Text up to the first zero.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// `<length> <key>=<value>\n`, again and again.
fn pax_records(mut bytes: &[u8]) -> Option<HashMap<String, String>> {
    let mut records = HashMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
        records.insert(
            String::from_utf8_lossy(key).into_owned(),
            String::from_utf8_lossy(value).into_owned(),
        );
        bytes = bytes.get(length..)?;
    }
    Some(records)
}

/// A header block.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn field(&self, start: usize, end: usize) -> &[u8] {
        self.0.get(start..end).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    fn name(&self) -> String {
        let name = text_of(self.field(0, 100));
        // GNU tar uses the room of the prefix for other things.
        match self.field(257, 263) == b"ustar\0" && self.0.get(345) != Some(&0) {
            true => format!("{}/{name}", text_of(self.field(345, 500))),
            false => name,
        }
    }

    fn size(&self) -> Option<u64> {
        let field = self.field(124, 136);
        match field.split_first() {
            // Binary, most significant byte first.
            Some((0x80, digits)) => digits
                .iter()
                .try_fold(0_u64, |size, byte| size.checked_mul(256)?.checked_add((*byte).into())),
            _ => octal(field),
        }
    }

    fn checksum_fits(&self) -> bool {
        let sum = |range: &[u8]| range.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        let actual = sum(self.field(0, 148)) + 8 * u64::from(b' ') + sum(self.field(156, 512));
        octal(self.field(148, 156)) == Some(actual)
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = text_of(field);
    let text = text.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}
