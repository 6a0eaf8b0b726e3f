//! What features are extracted from, as streams.

use std::{
    io,
    path::{MAIN_SEPARATOR, Path, PathBuf},
    sync::Arc,
};

use cn_clip_data::{
    DataError, Id,
    format::{Lines, image_line, query_line},
    image::decode_base64,
    lmdb::LmdbImages,
};
use walkdir::{DirEntry, WalkDir};

/// Endings of picture files in a folder, in any case.
pub const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// What names standard input.
pub const STDIN: &str = "-";

/// A picture or text of an input.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    /// Its identity.
    pub id: Id,
    /// The picture or text.
    pub content: T,
    /// Its share of the size of the input.
    pub cost: u64,
}

/// How large an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Entries, of which each costs 1.
    Entries(u64),
    /// Bytes of a file.
    Bytes(u64),
    /// It is read from a pipe.
    Unknown,
}

/// A stream of pictures or texts, of which one at a time is in memory.
pub struct Input<T> {
    /// The stream. An error is the last.
    pub entries: Entries<T>,
    /// Its size.
    pub size: Size,
}

/// The entries of an input.
pub type Entries<T> = Box<dyn Iterator<Item = Result<Entry<T>, DataError>> + Send>;

/// Where the bytes of a picture file are.
#[derive(Clone)]
pub enum Picture {
    /// In a file.
    File(PathBuf),
    /// In a database, under the id.
    Lmdb(Arc<LmdbImages>),
    /// In a line of a text file.
    Base64 {
        /// The text.
        text: String,
        /// The file.
        path: Arc<Path>,
        /// The line, from 1.
        line: u64,
    },
}

impl Picture {
    /// Reads the picture file.
    ///
    /// # Errors
    /// [`DataError::Image`] if it cannot be read or is no base64; others if the input is damaged.
    pub fn read(&self, id: &Id) -> Result<Vec<u8>, DataError> {
        let failed = |reason: String| DataError::Image { id: id.clone(), reason };
        match self {
            Self::File(path) => {
                std::fs::read(path).map_err(|error| failed(format!("{}: {error}", path.display())))
            }
            Self::Lmdb(images) => images.image(id),
            Self::Base64 { text, path, line } => decode_base64(text.as_bytes())
                .map_err(|error| failed(format!("{}:{line}: {error}", path.display()))),
        }
    }
}

/// Opens pictures: an LMDB directory (or that of a split, which holds `imgs`), `<split>_imgs.tsv`, a
/// folder of picture files, or `-` for paths on standard input.
///
/// Ids are those of the LMDB or the tsv, paths relative to the folder with `/` between their parts,
/// or the paths of standard input.
///
/// # Errors
/// [`DataError`] if there is nothing at `path` or nothing of these.
pub fn pictures(path: &Path) -> Result<Input<Picture>, DataError> {
    if path == Path::new(STDIN) {
        let entries = Box::new(stdin(|line, _| {
            (!line.is_empty())
                .then(|| (Id::Text(line.to_owned()), Picture::File(line.into())))
                .ok_or_else(|| "is empty: expected the path of a picture".to_owned())
        }));
        return Ok(Input { entries, size: Size::Unknown });
    }
    if path.is_file() {
        return tsv(path);
    }
    let split = path.join("imgs");
    match [path, &split].into_iter().find(|path| path.join("data.mdb").is_file()) {
        Some(path) => lmdb(path),
        None if path.is_dir() => folder(path),
        // Says that nothing is there.
        None => lmdb(path),
    }
}

fn lmdb(path: &Path) -> Result<Input<Picture>, DataError> {
    let images = Arc::new(LmdbImages::open(path)?);
    let size = Size::Entries(images.len() as u64);
    let ids = images.iter_ids();
    let entry = move |id| Entry { id, content: Picture::Lmdb(images.clone()), cost: 1 };
    Ok(Input { entries: Box::new(ids.map(move |id| id.map(&entry))), size })
}

fn tsv(path: &Path) -> Result<Input<Picture>, DataError> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    if !ending.is_some_and(|ending| ending.eq_ignore_ascii_case("tsv")) {
        let reason = "is no source of pictures: name an LMDB directory, <split>_imgs.tsv, a folder \
                      of pictures, or - for paths on standard input";
        return Err(DataError::file(path, reason));
    }
    let file: Arc<Path> = path.into();
    let entries = Box::new(LineEntries::new(Lines::open(path)?, move |line: &str, number| {
        let (id, text) = image_line(line)?;
        let (text, path) = (text.to_owned(), file.clone());
        Ok((Id::from(id), Picture::Base64 { text, path, line: number }))
    }));
    Ok(Input { entries, size: Size::Bytes(length(path)?) })
}

fn folder(root: &Path) -> Result<Input<Picture>, DataError> {
    let walk = || {
        let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
        walk.filter(|entry| entry.as_ref().map_or(true, is_picture))
    };
    // Names only: reading them twice costs little and tells how many there are.
    let count = walk().count() as u64;
    if count == 0 {
        let reason = format!(
            "holds no pictures (endings {}), and no LMDB",
            PICTURE_ENDINGS.map(|ending| format!(".{ending}")).join(", ")
        );
        return Err(DataError::Empty { path: root.into(), reason });
    }
    let root = root.to_path_buf();
    let entry = move |entry: walkdir::Result<DirEntry>| {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(&root).to_path_buf();
            DataError::io(path)(error.into())
        })?;
        let id = relative(&root, entry.path()).ok_or_else(|| {
            DataError::file(entry.path(), "has a name that is not UTF-8: rename it")
        })?;
        Ok(Entry { id: Id::Text(id), content: Picture::File(entry.into_path()), cost: 1 })
    };
    Ok(Input { entries: Box::new(walk().map(entry)), size: Size::Entries(count) })
}

fn is_picture(entry: &DirEntry) -> bool {
    let ending = entry.path().extension().and_then(|ending| ending.to_str());
    !entry.file_type().is_dir()
        && ending.is_some_and(|ending| {
            PICTURE_ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending))
        })
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    let path = path.strip_prefix(root).ok()?.to_str()?;
    Some(path.replace(MAIN_SEPARATOR, "/"))
}

/// Opens texts: JSON lines with `text_id` and `text`; a `.txt` of plain lines; or `-` for either on
/// standard input, told by whether the first line is a JSON object.
///
/// The id of a plain line is its number, from 1.
///
/// # Errors
/// [`DataError`] if the file cannot be opened.
pub fn texts(path: &Path) -> Result<Input<String>, DataError> {
    if path == Path::new(STDIN) {
        let mut plain = None;
        let entries = Box::new(stdin(move |line, number| {
            let plain = *plain.get_or_insert_with(|| !line.trim_start().starts_with('{'));
            if plain { plain_text(line, number) } else { query_line(line) }
        }));
        return Ok(Input { entries, size: Size::Unknown });
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    let plain = ending.is_some_and(|ending| ending.eq_ignore_ascii_case("txt"));
    let parse =
        move |line: &str, number| if plain { plain_text(line, number) } else { query_line(line) };
    let entries = Box::new(LineEntries::new(Lines::open(path)?, parse));
    Ok(Input { entries, size: Size::Bytes(length(path)?) })
}

fn plain_text(line: &str, number: u64) -> Result<(Id, String), String> {
    Ok((Id::Int(i64::try_from(number).unwrap_or(i64::MAX)), line.to_owned()))
}

fn stdin<T, F>(parse: F) -> LineEntries<F>
where
    F: FnMut(&str, u64) -> Result<(Id, T), String>,
{
    LineEntries::new(Lines::new("standard input", io::stdin()), parse)
}

fn length(path: &Path) -> Result<u64, DataError> {
    Ok(path.metadata().map_err(DataError::io(path))?.len())
}

/// Entries of a text file, one per line.
struct LineEntries<F> {
    lines: Lines,
    line: String,
    parse: F,
    ended: bool,
}

impl<F> LineEntries<F> {
    fn new(lines: Lines, parse: F) -> Self {
        Self { lines, line: String::new(), parse, ended: false }
    }

    fn read<T>(&mut self) -> Result<Option<Entry<T>>, DataError>
    where
        F: FnMut(&str, u64) -> Result<(Id, T), String>,
    {
        let before = self.lines.bytes();
        if !self.lines.next_into(&mut self.line)? {
            return Ok(None);
        }
        let parsed = (self.parse)(&self.line, self.lines.number());
        let (id, content) = parsed.map_err(|reason| self.lines.error(reason))?;
        Ok(Some(Entry { id, content, cost: self.lines.bytes() - before }))
    }
}

impl<T, F> Iterator for LineEntries<F>
where
    F: FnMut(&str, u64) -> Result<(Id, T), String>,
{
    type Item = Result<Entry<T>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = self.read().transpose();
        self.ended = !matches!(entry, Some(Ok(_)));
        entry
    }
}
