//! Parquet files, such as those of Hugging Face data sets.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
    schema::types::Type,
};
use rayon::prelude::*;

use super::{
    SampleStream,
    checked::{CheckedFile, catch_panic},
    columns::{
        BYTES_COLUMNS, ID_COLUMNS, PATH_COLUMNS, TEXT_COLUMNS, TEXT_ID_COLUMN, find, listed,
        read_picture,
    },
    stream::{Content, Shards, Stream},
};
use crate::{error::DataError, record::Id};

/// Opens parquet files. A row group is a shard.
///
/// A row has a picture — bytes, a struct of `bytes` and `path`, or a path relative to the file's
/// folder — and a caption or a list of captions. `image_id`, `id` or `key` and `text_id` are its
/// ids; without, the id is `<file>/<row>`. Pictures of a row group are held in memory while samples
/// of it wait in the shuffle buffer.
pub fn open_parquet(paths: &[PathBuf]) -> Result<Arc<dyn SampleStream>, DataError> {
    let opened: Vec<(PathBuf, Columns, Vec<usize>)> = paths
        .par_iter()
        .map(|path| {
            guarded(path, || {
                let reader = reader(path)?;
                let meta = reader.metadata();
                let columns = Columns::find(path, meta.file_metadata().schema())?;
                let rows = meta.row_groups().iter();
                let rows = rows.map(|group| usize::try_from(group.num_rows()).unwrap_or(0));
                Ok((path.clone(), columns, rows.collect()))
            })
        })
        .collect::<Result<_, DataError>>()?;
    let (mut files, mut groups, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (file, (path, columns, rows)) in opened.into_iter().enumerate() {
        let mut first = 0;
        for (group, count) in rows.into_iter().enumerate() {
            if count > 0 {
                groups.push(Group { file, group, first });
                counts.push(count);
            }
            first += count;
        }
        files.push((path, columns));
    }
    if groups.is_empty() {
        return Err(DataError::Config("the parquet files hold no rows".to_string()));
    }
    Ok(Arc::new(Stream::new(ParquetShards { files, groups, counts: counts.into() })))
}

struct ParquetShards {
    files: Vec<(PathBuf, Columns)>,
    groups: Vec<Group>,
    counts: Arc<[usize]>,
}

/// A row group.
struct Group {
    file: usize,
    group: usize,
    /// Row of the file that is its first.
    first: usize,
}

/// Names of the columns that are read.
struct Columns {
    image: String,
    /// Whether that is a path even where it is stored as plain bytes.
    is_path: bool,
    text: String,
    id: Option<String>,
    text_id: Option<String>,
    projection: Type,
}

impl Columns {
    fn find(path: &Path, schema: &Type) -> Result<Self, DataError> {
        let fields = schema.get_fields();
        let names = || fields.iter().map(|field| field.name());
        let name = |wanted: &[&str]| {
            find(names(), wanted).and_then(|at| Some(fields.get(at)?.name().to_string()))
        };
        let lacks = |what: &str, wanted: &[&str]| {
            let there: Vec<&str> = names().collect();
            let (wanted, there) = (listed(wanted), listed(&there));
            DataError::file(path, format!("has no column of {what}: {wanted}, but only {there}"))
        };
        let wanted = [BYTES_COLUMNS.as_slice(), PATH_COLUMNS.as_slice()].concat();
        let image = name(&wanted).ok_or_else(|| lacks("pictures", &wanted))?;
        let text = name(&TEXT_COLUMNS).ok_or_else(|| lacks("captions", &TEXT_COLUMNS))?;
        let is_path = !BYTES_COLUMNS.iter().any(|name| image.eq_ignore_ascii_case(name));
        let (id, text_id) = (name(&ID_COLUMNS), name(&[TEXT_ID_COLUMN]));
        let read = [Some(&image), Some(&text), id.as_ref(), text_id.as_ref()];
        let projected = fields
            .iter()
            .filter(|field| read.iter().flatten().any(|name| name.as_str() == field.name()));
        let projection = Type::group_type_builder(schema.name())
            .with_fields(projected.cloned().collect())
            .build()
            .map_err(|error| DataError::file(path, error))?;
        Ok(Self { image, is_path, text, id, text_id, projection })
    }
}

/// A row while it waits.
struct Waiting {
    /// Number in the file, from 0.
    row: usize,
    fields: Vec<(String, Field)>,
}

impl ParquetShards {
    fn group(&self, shard: usize) -> Result<(&Group, &Path, &Columns), DataError> {
        let found =
            self.groups.get(shard).and_then(|group| Some((group, self.files.get(group.file)?)));
        let (group, (path, columns)) =
            found.ok_or_else(|| DataError::Config(format!("row group {shard} does not exist")))?;
        Ok((group, path, columns))
    }
}

impl Shards for ParquetShards {
    type Entry = Waiting;

    fn counts(&self) -> &Arc<[usize]> {
        &self.counts
    }

    fn load(&self, shard: usize) -> Result<Vec<Waiting>, DataError> {
        let (group, path, columns) = self.group(shard)?;
        let failed = |error| DataError::file(path, describe(error));
        guarded(path, || {
            let reader = reader(path)?;
            let rows = reader.get_row_group(group.group).map_err(failed)?;
            let mut waiting = Vec::new();
            let rows = rows.get_row_iter(Some(columns.projection.clone())).map_err(failed)?;
            for (number, row) in rows.enumerate() {
                let row: Row = row.map_err(failed)?;
                waiting.push(Waiting { row: group.first + number, fields: own(row) });
            }
            match Some(&waiting.len()) == self.counts.get(shard) {
                true => Ok(waiting),
                false => Err(DataError::file(path, "has changed since it was opened")),
            }
        })
    }

    fn content(&self, shard: usize, entry: Waiting) -> Result<Content, DataError> {
        let (_, path, columns) = self.group(shard)?;
        let Waiting { row, mut fields } = entry;
        let wrong = |column: &str, reason: &str| {
            DataError::file(path, format!("row {row}, column `{column}`: {reason}"))
        };
        let mut take = |name: &str| {
            let field = fields.iter_mut().find(|(other, _)| other == name);
            field.map_or(Field::Null, |(_, field)| std::mem::replace(field, Field::Null))
        };
        let id = |column: &Option<String>, field: Field| match column {
            None => Ok(None),
            Some(column) => id_of(field).map_err(|reason| wrong(column, &reason)),
        };
        let captions =
            captions_of(take(&columns.text)).map_err(|reason| wrong(&columns.text, &reason))?;
        let image_id = id(&columns.id, columns.id.as_deref().map_or(Field::Null, &mut take))?;
        let text_id =
            id(&columns.text_id, columns.text_id.as_deref().map_or(Field::Null, &mut take))?;
        let image_id = image_id.unwrap_or_else(|| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            Id::Text(format!("{stem}/{row}"))
        });
        let image = match picture_of(take(&columns.image), columns.is_path) {
            Ok(Picture::Bytes(bytes)) => bytes,
            Ok(Picture::Path(name)) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                read_picture(folder, &name).map_err(|reason| DataError::Image {
                    id: image_id.clone(),
                    reason: format!("{}: row {row}: {reason}", path.display()),
                })?
            }
            Err(reason) => return Err(wrong(&columns.image, reason)),
        };
        Ok(Content { image_id, text_id, captions, image })
    }
}

/// Copies bytes out of the pages, which else stay in memory as long as one of their rows.
fn own(row: Row) -> Vec<(String, Field)> {
    let own = |(name, field)| match field {
        Field::Bytes(bytes) => (name, Field::Bytes(bytes.data().to_vec().into())),
        Field::Group(inner) => (name, Field::Group(Row::new(own(inner)))),
        other => (name, other),
    };
    row.into_columns().into_iter().map(own).collect()
}

fn text_of(field: Field) -> Result<Option<String>, String> {
    match field {
        Field::Null => Ok(None),
        Field::Str(text) => Ok(Some(text)),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Ok(Some(text.to_string())),
            Err(_) => Err("is not UTF-8".to_string()),
        },
        _ => Err("is no text".to_string()),
    }
}

fn captions_of(field: Field) -> Result<Vec<String>, String> {
    let texts = match field {
        Field::ListInternal(list) => {
            list.elements().iter().cloned().map(text_of).collect::<Result<Vec<_>, _>>()?
        }
        other => vec![text_of(other)?],
    };
    let texts: Option<Vec<String>> = texts.into_iter().collect();
    texts.filter(|texts| !texts.is_empty()).ok_or_else(|| "has no caption".to_string())
}

fn id_of(field: Field) -> Result<Option<Id>, String> {
    Ok(match field {
        Field::Byte(value) => Some(Id::Int(value.into())),
        Field::Short(value) => Some(Id::Int(value.into())),
        Field::Int(value) => Some(Id::Int(value.into())),
        Field::Long(value) => Some(Id::Int(value)),
        Field::UByte(value) => Some(Id::Int(value.into())),
        Field::UShort(value) => Some(Id::Int(value.into())),
        Field::UInt(value) => Some(Id::Int(value.into())),
        Field::ULong(value) => Some(Id::from(value.to_string().as_str())),
        other => text_of(other)?.map(|text| Id::from(text.as_str())),
    })
}

enum Picture {
    Bytes(Vec<u8>),
    Path(String),
}

fn picture_of(field: Field, is_path: bool) -> Result<Picture, &'static str> {
    match field {
        Field::Bytes(bytes) if is_path => match std::str::from_utf8(bytes.data()) {
            Ok(path) => Ok(Picture::Path(path.to_string())),
            Err(_) => Err("is a path that is not UTF-8"),
        },
        Field::Bytes(bytes) => Ok(Picture::Bytes(bytes.data().to_vec())),
        Field::Str(path) => Ok(Picture::Path(path)),
        Field::Group(row) => {
            let mut fields = row.into_columns();
            let mut take = |name: &str| {
                let at = fields
                    .iter()
                    .position(|(other, field)| other == name && !matches!(field, Field::Null))?;
                Some(fields.swap_remove(at).1)
            };
            match (take("bytes"), take("path")) {
                (Some(bytes @ Field::Bytes(_)), _) => picture_of(bytes, false),
                (_, Some(path @ (Field::Bytes(_) | Field::Str(_)))) => picture_of(path, true),
                _ => Err("has neither `bytes` nor `path`"),
            }
        }
        Field::Null => Err("has no picture: remove the row"),
        _ => Err("is neither bytes nor a path"),
    }
}

fn reader(path: &Path) -> Result<SerializedFileReader<CheckedFile>, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let failed = |error| DataError::file(path, describe(error));
    SerializedFileReader::new(CheckedFile(file)).map_err(failed)
}

fn describe(error: ParquetError) -> String {
    format!("cannot be read as parquet: {error}")
}

/// Runs a reader of parquet, which panics on some damaged files.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_panic(read)
        .unwrap_or_else(|| Err(DataError::file(path, "is damaged: make the file again")))
}
