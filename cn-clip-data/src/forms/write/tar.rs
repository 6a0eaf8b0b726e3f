//! Webdataset shards.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{ShardOptions, refuse, refuse_shards};
use crate::{
    atomic::{AtomicFile, write_atomically},
    error::DataError,
    forms::{Sample, tar::SIZES, tar_header::BLOCK},
    record::Id,
};

/// The `.json` of a sample.
#[derive(Serialize)]
struct Description<'a> {
    caption: &'a str,
    image_id: &'a Id,
    text_id: &'a Id,
}

pub(super) struct TarWriter {
    directory: PathBuf,
    options: ShardOptions,
    shard: Option<(PathBuf, AtomicFile)>,
    /// Samples and bytes of the shard at hand.
    samples: usize,
    bytes: u64,
    /// Samples of all shards.
    total: u64,
    sizes: BTreeMap<String, usize>,
    paths: Vec<PathBuf>,
}

impl TarWriter {
    pub fn new(directory: &Path, options: &ShardOptions) -> Result<Self, DataError> {
        refuse_shards(directory, &options.prefix, ".tar")?;
        refuse(&directory.join(SIZES))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            options: options.clone(),
            shard: None,
            samples: 0,
            bytes: 0,
            total: 0,
            sizes: BTreeMap::new(),
            paths: Vec::new(),
        })
    }

    pub fn add(&mut self, sample: &Sample) -> Result<(), DataError> {
        if self.samples >= self.options.samples || self.bytes >= self.options.bytes {
            self.close()?;
        }
        let Sample { pair, image } = sample;
        let (path, mut file) = match self.shard.take() {
            Some(shard) => shard,
            None => {
                let name = format!("{}-{:06}.tar", self.options.prefix, self.paths.len());
                let path = self.directory.join(name);
                let file = AtomicFile::create(&path).map_err(DataError::io(&path))?;
                (path, file)
            }
        };
        let description =
            Description { caption: &pair.text, image_id: &pair.image_id, text_id: &pair.text_id };
        let json = serde_json::to_vec(&description)
            .map_err(|error| DataError::io(&path)(io::Error::from(error)))?;
        let key = format!("{:09}", self.total);
        // A text file is read without the white space around it.
        let plain = pair.text.trim() == pair.text;
        let text = plain.then_some(("txt", pair.text.as_bytes()));
        let picture = (extension(image), image.as_slice());
        for (extension, bytes) in [Some(picture), text, Some(("json", &json))].into_iter().flatten()
        {
            write_member(&mut file, &format!("{key}.{extension}"), bytes)
                .map_err(DataError::io(&path))?;
            self.bytes += bytes.len() as u64;
        }
        self.samples += 1;
        self.total += 1;
        self.shard = Some((path, file));
        Ok(())
    }

    fn close(&mut self) -> Result<(), DataError> {
        let Some((path, mut file)) = self.shard.take() else { return Ok(()) };
        file.write_all(&[0; 2 * BLOCK as usize])
            .and_then(|()| file.finish())
            .map_err(DataError::io(&path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.sizes.insert(name, self.samples);
        self.paths.push(path);
        (self.samples, self.bytes) = (0, 0);
        Ok(())
    }

    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.close()?;
        let path = self.directory.join(SIZES);
        serde_json::to_vec_pretty(&self.sizes)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomically(&path, &bytes))
            .map_err(DataError::io(&path))?;
        self.paths.push(path);
        Ok(self.paths)
    }
}

/// The extension of a picture file, by its first bytes.
fn extension(image: &[u8]) -> &'static str {
    match image {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', ..] => "gif",
        [b'B', b'M', ..] => "bmp",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        _ => "jpg",
    }
}

/// Writes a member with a ustar header.
fn write_member(file: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Eleven octal digits.
    if bytes.len() as u64 >= 1 << 33 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a member is larger than 8 GiB"));
    }
    let mut header = [0_u8; BLOCK as usize];
    let mut put = |at: usize, value: &[u8]| {
        for (place, byte) in header.iter_mut().skip(at).zip(value) {
            *place = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", bytes.len()).as_bytes());
    // No time, so that the same samples give the same file.
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (place, byte) in header.iter_mut().skip(148).zip(sum.as_bytes()) {
        *place = *byte;
    }
    file.write_all(&header)?;
    file.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(BLOCK as usize) - bytes.len();
    file.write_all(&vec![0; padding])
}
