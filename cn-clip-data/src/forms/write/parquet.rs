//! Parquet files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::{parser::parse_message_type, types::TypePtr},
};

use super::{ShardOptions, refuse_shards};
use crate::{atomic::AtomicFile, error::DataError, forms::Sample};

const SCHEMA: &str = "message pairs {
    required binary image_id (STRING);
    required binary text_id (STRING);
    required binary image;
    required binary caption (STRING);
}";
/// Rows of a row group at most.
const GROUP_ROWS: usize = 1000;
/// Bytes of pictures after which a row group is closed.
const GROUP_BYTES: u64 = 64 << 20;

pub(super) struct ParquetWriter {
    directory: PathBuf,
    options: ShardOptions,
    schema: TypePtr,
    properties: Arc<WriterProperties>,
    file: Option<(PathBuf, SerializedFileWriter<AtomicFile>)>,
    /// Samples and bytes of the file at hand.
    samples: usize,
    bytes: u64,
    /// The row group at hand, a column each.
    rows: [Vec<ByteArray>; 4],
    group_bytes: u64,
    paths: Vec<PathBuf>,
}

impl ParquetWriter {
    pub fn new(directory: &Path, options: &ShardOptions) -> Result<Self, DataError> {
        refuse_shards(directory, &options.prefix, ".parquet")?;
        let compression = match options.compress {
            true => Compression::ZSTD(ZstdLevel::default()),
            false => Compression::UNCOMPRESSED,
        };
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let schema = parse_message_type(SCHEMA).map_err(failed(directory))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            options: options.clone(),
            schema: Arc::new(schema),
            properties: Arc::new(properties),
            file: None,
            samples: 0,
            bytes: 0,
            rows: Default::default(),
            group_bytes: 0,
            paths: Vec::new(),
        })
    }

    pub fn add(&mut self, sample: Sample) -> Result<(), DataError> {
        if self.samples >= self.options.samples || self.bytes >= self.options.bytes {
            self.close()?;
        }
        let Sample { pair, image } = sample;
        let length = (image.len() + pair.text.len()) as u64;
        let (image_id, text_id) = (pair.image_id.to_string(), pair.text_id.to_string());
        let row = [image_id.into_bytes(), text_id.into_bytes(), image, pair.text.into_bytes()];
        for (column, value) in self.rows.iter_mut().zip(row) {
            column.push(ByteArray::from(value));
        }
        self.samples += 1;
        self.bytes += length;
        self.group_bytes += length;
        if self.rows[0].len() >= GROUP_ROWS || self.group_bytes >= GROUP_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), DataError> {
        let rows = std::mem::take(&mut self.rows);
        self.group_bytes = 0;
        let (path, mut file) = match self.file.take() {
            Some(file) => file,
            None => {
                let name = format!("{}-{:06}.parquet", self.options.prefix, self.paths.len());
                let path = self.directory.join(name);
                let file = AtomicFile::create(&path).map_err(DataError::io(&path))?;
                let (schema, properties) = (self.schema.clone(), self.properties.clone());
                let file = SerializedFileWriter::new(file, schema, properties);
                (path.clone(), file.map_err(failed(&path))?)
            }
        };
        write_columns(&mut file, &rows).map_err(failed(&path))?;
        self.file = Some((path, file));
        Ok(())
    }

    fn close(&mut self) -> Result<(), DataError> {
        if !self.rows[0].is_empty() {
            self.write_group()?;
        }
        let Some((path, file)) = self.file.take() else { return Ok(()) };
        file.into_inner().map_err(failed(&path))?.finish().map_err(DataError::io(&path))?;
        self.paths.push(path);
        (self.samples, self.bytes) = (0, 0);
        Ok(())
    }

    pub fn finish(mut self) -> Result<Vec<PathBuf>, DataError> {
        self.close()?;
        Ok(self.paths)
    }
}

fn write_columns(
    file: &mut SerializedFileWriter<AtomicFile>,
    columns: &[Vec<ByteArray>],
) -> Result<(), ParquetError> {
    let mut group = file.next_row_group()?;
    for values in columns {
        let Some(mut column) = group.next_column()? else { break };
        column.typed::<ByteArrayType>().write_batch(values, None, None)?;
        column.close()?;
    }
    group.close()?;
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(ParquetError) -> DataError {
    let path = path.to_path_buf();
    move |error| DataError::io(path)(io::Error::other(error))
}
