//! Parquet files with a column of ids and one of lists of floats.

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

use ::parquet::{
    basic::Type as Physical,
    column::reader::{ColumnReader, get_typed_column_reader},
    data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader, RowGroupReader, SerializedFileReader},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::{parser::parse_message_type, types::SchemaDescriptor},
};
use cn_clip_data::{
    Id,
    atomic::AtomicFile,
    forms::{CheckedFile, catch_panic},
    pread::read_at,
};

use super::{
    FeatureError, Features, Modality, RowProblem, arrow_schema,
    checks::{check_distinct, check_values},
    part::Part,
};

/// Columns of features.
const FEATURE_COLUMNS: [&str; 3] = ["feature", "embedding", "vector"];
/// Bytes of the features of a row group.
const GROUP_BYTES: usize = 32 << 20;
/// Key that says that strings of digits are numbers, as some ids are not.
const MIXED_IDS: &str = "cn_clip.mixed_ids";

/// Reads a file into memory. Ids are the column of the modality's key, or `id`.
pub(super) fn read(path: &Path, modality: Modality) -> Result<Features, FeatureError> {
    let file = File::open(path).map_err(FeatureError::read(path))?;
    if file.metadata().map_err(FeatureError::read(path))?.len() == 0 {
        return Err(FeatureError::Empty { path: path.to_owned() });
    }
    let read = catch_panic(|| Table::read(file, modality))
        .unwrap_or_else(|| Err(Problem::File("is damaged: extract the features again".to_owned())));
    let Table { ids, dim, data } = read.map_err(|problem| match problem {
        Problem::File(reason) => FeatureError::file(path, reason),
        Problem::Row { row, id, problem } => {
            FeatureError::FileRow { path: path.to_owned(), row, id, problem }
        }
    })?;
    if ids.is_empty() {
        return Err(FeatureError::Empty { path: path.to_owned() });
    }
    Ok(Features { ids, dim, data })
}

enum Problem {
    File(String),
    Row { row: usize, id: Id, problem: RowProblem },
}

impl From<ParquetError> for Problem {
    fn from(error: ParquetError) -> Self {
        Self::File(format!("cannot be read as parquet: {error}"))
    }
}

/// What has been read of a file.
#[derive(Default)]
struct Table {
    ids: Vec<Id>,
    dim: usize,
    data: Vec<f32>,
}

impl Table {
    fn read(file: File, modality: Modality) -> Result<Self, Problem> {
        let reader = SerializedFileReader::new(CheckedFile(file))?;
        let metadata = reader.metadata().file_metadata();
        let keys = metadata.key_value_metadata();
        let mixed = keys.is_some_and(|keys| keys.iter().any(|pair| pair.key == MIXED_IDS));
        let (id, feature) = find_columns(metadata.schema_descr(), modality)?;
        let mut table = Self::default();
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group)?;
            let first = table.ids.len();
            table.ids.extend(read_ids(group.as_ref(), id, mixed)?);
            table.read_features(group.as_ref(), feature, first)?;
        }
        let row_error =
            |row: usize, problem| Problem::Row { row, id: table.ids[row].clone(), problem };
        for (row, values) in table.data.chunks(table.dim.max(1)).enumerate() {
            check_values(values, table.dim).map_err(|problem| row_error(row, problem))?;
        }
        check_distinct(&table.ids).map_err(|(row, problem)| row_error(row, problem))?;
        Ok(table)
    }

    /// Appends the features of a row group, whose ids are there from `first` on.
    fn read_features(
        &mut self,
        group: &dyn RowGroupReader,
        column: usize,
        first: usize,
    ) -> Result<(), Problem> {
        let rows = self.ids.len() - first;
        let description = group.metadata().column(column).column_descr_ptr();
        let whole = description.max_def_level();
        let mut levels = Levels::default();
        match group.get_column_reader(column)? {
            ColumnReader::FloatColumnReader(reader) => {
                let mut reader =
                    get_typed_column_reader::<FloatType>(ColumnReader::FloatColumnReader(reader));
                while let (1.., ..) = reader.read_records(
                    rows,
                    Some(&mut levels.definition),
                    Some(&mut levels.repetition),
                    &mut self.data,
                )? {}
            }
            other => {
                let mut reader = get_typed_column_reader::<DoubleType>(other);
                let mut values = Vec::new();
                while let (1.., ..) = reader.read_records(
                    rows,
                    Some(&mut levels.definition),
                    Some(&mut levels.repetition),
                    &mut values,
                )? {}
                self.data.extend(values.into_iter().map(|value| value as f32));
            }
        }
        let lengths = levels.lengths(whole)?;
        if lengths.len() != rows {
            return Err(Problem::File(format!("has {} features for {rows} ids", lengths.len())));
        }
        for (row, found) in lengths.into_iter().enumerate() {
            if self.dim == 0 {
                self.dim = found;
            }
            let problem = match found {
                0 => RowProblem::EmptyFeature,
                _ if found != self.dim => RowProblem::Dimension { found, expected: self.dim },
                _ => continue,
            };
            let row = first + row;
            return Err(Problem::Row { row, id: self.ids[row].clone(), problem });
        }
        Ok(())
    }
}

/// Where lists begin and whether their values are there.
#[derive(Default)]
struct Levels {
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Levels {
    /// Values of each list.
    fn lengths(&self, whole: i16) -> Result<Vec<usize>, Problem> {
        let mut lengths = Vec::new();
        for (&definition, &repetition) in self.definition.iter().zip(&self.repetition) {
            if repetition == 0 {
                lengths.push(0);
            }
            match lengths.last_mut() {
                Some(length) if definition == whole => *length += 1,
                Some(0) if repetition == 0 => {}
                _ => return Err(Problem::File("has a feature with missing values".to_owned())),
            }
        }
        Ok(lengths)
    }
}

/// The columns of ids and of features.
fn find_columns(schema: &SchemaDescriptor, modality: Modality) -> Result<(usize, usize), Problem> {
    let columns = schema.columns();
    let find = |names: &[&str], fits: &dyn Fn(usize) -> bool| {
        names.iter().find_map(|name| {
            let named = |at: &usize| columns[*at].path().parts().first().is_some_and(|n| n == name);
            (0..columns.len()).find(|at| named(at) && fits(*at))
        })
    };
    let id = find(&[modality.id_key(), "id"], &|at| {
        let kinds = [Physical::INT32, Physical::INT64, Physical::BYTE_ARRAY];
        columns[at].max_rep_level() == 0 && kinds.contains(&columns[at].physical_type())
    });
    let feature = find(&FEATURE_COLUMNS, &|at| {
        let kinds = [Physical::FLOAT, Physical::DOUBLE];
        columns[at].max_rep_level() == 1 && kinds.contains(&columns[at].physical_type())
    });
    let there: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
    let lacks = |what: String| {
        Problem::File(format!("has no column {what}; its columns are {}", there.join(", ")))
    };
    let id = id.ok_or_else(|| {
        lacks(format!("`{}` or `id` of whole numbers or strings", modality.id_key()))
    })?;
    let feature = feature
        .ok_or_else(|| lacks("`feature`, `embedding` or `vector` of lists of floats".into()))?;
    Ok((id, feature))
}

fn read_ids(group: &dyn RowGroupReader, column: usize, mixed: bool) -> Result<Vec<Id>, Problem> {
    let rows = usize::try_from(group.metadata().num_rows())
        .map_err(|_| Problem::File("has a row group of less than no rows".to_owned()))?;
    let ids = match group.get_column_reader(column)? {
        reader @ ColumnReader::Int32ColumnReader(_) => {
            let values = read_flat::<Int32Type>(reader, rows)?;
            values.into_iter().map(|value| Id::Int(value.into())).collect()
        }
        reader @ ColumnReader::Int64ColumnReader(_) => {
            read_flat::<Int64Type>(reader, rows)?.into_iter().map(Id::Int).collect()
        }
        reader => {
            let values = read_flat::<ByteArrayType>(reader, rows)?;
            let id = |value: &ByteArray| {
                let text = value.as_utf8()?;
                Ok(if mixed { Id::from(text) } else { Id::Text(text.to_owned()) })
            };
            values.iter().map(id).collect::<ParquetResult<Vec<Id>>>()?
        }
    };
    match ids.len() == rows {
        true => Ok(ids),
        false => Err(Problem::File("has rows without an id".to_owned())),
    }
}

fn read_flat<T: DataType>(reader: ColumnReader, rows: usize) -> ParquetResult<Vec<T::T>> {
    let mut reader = get_typed_column_reader::<T>(reader);
    let (mut values, mut definition) = (Vec::new(), Vec::new());
    while let (1.., ..) = reader.read_records(rows, Some(&mut definition), None, &mut values)? {}
    Ok(values)
}

/// Writes the rows of a part to its target.
pub(super) fn write(part: &mut Part, target: &Path, modality: Modality) -> io::Result<()> {
    let file =
        write_groups(part, AtomicFile::create(target)?, modality).map_err(|error| match error {
            ParquetError::External(inner) => match inner.downcast() {
                Ok(error) => *error,
                Err(inner) => io::Error::other(inner),
            },
            error => io::Error::other(error),
        })?;
    file.finish()
}

fn write_groups(
    part: &mut Part,
    file: AtomicFile,
    modality: Modality,
) -> ParquetResult<AtomicFile> {
    let (rows, dim) = (part.rows(), part.dim());
    let key = modality.id_key();
    let id = if part.only_integers() {
        format!("int64 {key}")
    } else {
        format!("binary {key} (STRING)")
    };
    let schema = parse_message_type(&format!(
        "message features {{ required {id}; required group feature (LIST) {{
             repeated group list {{ required float element; }} }} }}"
    ))?;
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
    let group_rows = (GROUP_BYTES / 4 / dim).max(1);
    let mut ids = part.stored_ids()?;
    let mut mixed = false;
    let mut values = Vec::new();
    for first in (0..rows).step_by(group_rows) {
        let range = first..rows.min(first + group_rows);
        let ids: Vec<Id> = ids.by_ref().take(range.len()).collect::<io::Result<_>>()?;
        mixed |= !part.only_integers() && ids.iter().any(|id| matches!(id, Id::Int(_)));
        read_values(part, range, &mut values)?;
        let mut group = writer.next_row_group()?;
        write_ids(&mut group, &ids, part.only_integers())?;
        write_lists(&mut group, &values, dim)?;
        group.close()?;
    }
    let schema = arrow_schema::encode(key, part.only_integers(), i32::try_from(dim).unwrap_or(0));
    writer.append_key_value_metadata(KeyValue::new(arrow_schema::KEY.to_owned(), schema));
    if mixed {
        writer.append_key_value_metadata(KeyValue::new(MIXED_IDS.to_owned(), None));
    }
    writer.into_inner()
}

fn read_values(part: &mut Part, rows: Range<usize>, values: &mut Vec<f32>) -> io::Result<()> {
    let width = part.dim() * 4;
    let mut bytes = vec![0; rows.len() * width];
    read_at(part.values()?, &mut bytes, (rows.start * width) as u64)?;
    values.clear();
    values.extend(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)));
    Ok(())
}

fn write_ids<W: io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    ids: &[Id],
    integers: bool,
) -> ParquetResult<()> {
    let Some(mut column) = group.next_column()? else { return Ok(()) };
    if integers {
        let number = |id: &Id| if let Id::Int(value) = id { *value } else { 0 };
        let values: Vec<i64> = ids.iter().map(number).collect();
        column.typed::<Int64Type>().write_batch(&values, None, None)?;
    } else {
        let text = |id: &Id| ByteArray::from(id.to_string().into_bytes());
        let values: Vec<ByteArray> = ids.iter().map(text).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
    }
    column.close()
}

fn write_lists<W: io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[f32],
    dim: usize,
) -> ParquetResult<()> {
    let Some(mut column) = group.next_column()? else { return Ok(()) };
    let definition = vec![1; values.len()];
    let repetition: Vec<i16> = (0..values.len()).map(|at| i16::from(at % dim != 0)).collect();
    column.typed::<FloatType>().write_batch(values, Some(&definition), Some(&repetition))?;
    column.close()
}
