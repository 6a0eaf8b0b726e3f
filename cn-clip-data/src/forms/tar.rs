//! Webdataset shards: tar files whose consecutive members of one name are a sample.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{
    SampleStream,
    columns::captions,
    stream::{Content, Shards, Stream},
    tar_header::{Member, Members},
};
use crate::{error::DataError, pread::read_at, record::Id};

/// File beside the shards that maps their names to their numbers of samples.
pub(super) const SIZES: &str = "sizes.json";
/// Extensions of pictures.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];
/// Bytes of a `.txt` or `.json` at most.
const MAX_TEXT: u64 = 16 << 20;
/// Bytes of a picture at most.
const MAX_PICTURE: u64 = 1 << 30;

/// Opens tar shards. Samples are counted by reading all headers, unless `sizes.json` beside a shard
/// tells their number.
///
/// A sample has one picture, and its caption in `.txt` (the whole file) or else in `.json` (the
/// string or the list of strings `caption` or `text`). `image_id` and `text_id` of the `.json` are
/// its ids; without, the id is `<shard>/<name>`.
pub fn open_tar(paths: &[PathBuf]) -> Result<Arc<dyn SampleStream>, DataError> {
    let mut sizes: HashMap<PathBuf, HashMap<String, usize>> = HashMap::new();
    for path in paths {
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        if let Entry::Vacant(place) = sizes.entry(folder) {
            let read = read_sizes(place.key())?;
            place.insert(read);
        }
    }
    let count = |path: &PathBuf| -> Result<(PathBuf, usize), DataError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let known = path.parent().and_then(|folder| sizes.get(folder)?.get(name?).copied());
        let count = match known {
            Some(count) if path.is_file() => count,
            _ => locate(path)?.len(),
        };
        Ok((path.clone(), count))
    };
    let counted = paths.par_iter().map(count).collect::<Result<Vec<_>, DataError>>()?;
    let (paths, counts): (Vec<PathBuf>, Vec<usize>) =
        counted.into_iter().filter(|(_, count)| *count > 0).unzip();
    if paths.is_empty() {
        return Err(DataError::Config("the tar shards hold no samples".to_string()));
    }
    Ok(Arc::new(Stream::new(TarShards { paths, counts: counts.into() })))
}

fn read_sizes(folder: &Path) -> Result<HashMap<String, usize>, DataError> {
    let path = folder.join(SIZES);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            DataError::file(&path, format!("{error}: expected {{\"shard.tar\": samples}}"))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(HashMap::new()),
        Err(error) => Err(DataError::io(path)(error)),
    }
}

struct TarShards {
    paths: Vec<PathBuf>,
    counts: Arc<[usize]>,
}

/// Where the members of a sample lie.
struct Location {
    file: Arc<File>,
    key: String,
    picture: Member,
    txt: Option<Member>,
    json: Option<Member>,
}

/// Finds the samples of a shard.
fn locate(path: &Path) -> Result<Vec<Location>, DataError> {
    let file = Arc::new(File::open(path).map_err(DataError::io(path))?);
    let mut samples = Vec::new();
    let mut group = Group::default();
    for member in Members::new(path, &file)? {
        let member = member?;
        let Some((key, extension)) = split_name(&member.name) else { continue };
        if key != group.key {
            let done = std::mem::replace(&mut group, Group::new(key));
            samples.extend(done.finish(path, &file)?);
        }
        let extension = extension.to_ascii_lowercase();
        let is_picture = PICTURES.contains(&extension.as_str());
        let slot = match extension.as_str() {
            "txt" => &mut group.txt,
            "json" => &mut group.json,
            _ if is_picture => &mut group.picture,
            _ => continue,
        };
        if member.length > if is_picture { MAX_PICTURE } else { MAX_TEXT } {
            let reason = format!("member `{}` is absurdly long: remove the sample", member.name);
            return Err(DataError::file(path, reason));
        }
        if let Some(first) = slot {
            let reason = format!("`{}` and `{}` are of the same sample", first.name, member.name);
            return Err(DataError::file(path, reason + ": leave one of them out"));
        }
        *slot = Some(member);
    }
    samples.extend(group.finish(path, &file)?);
    Ok(samples)
}

/// Splits at the first dot of the file name; `None` for names that do not belong to a sample.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name.get(base..)?.find('.')?;
    (dot > base).then_some((name.get(..dot)?, name.get(dot + 1..)?))
}

/// Members of one key.
#[derive(Default)]
struct Group {
    key: String,
    picture: Option<Member>,
    txt: Option<Member>,
    json: Option<Member>,
}

impl Group {
    fn new(key: &str) -> Self {
        Self { key: key.to_string(), ..Self::default() }
    }

    fn finish(self, path: &Path, file: &Arc<File>) -> Result<Option<Location>, DataError> {
        let Self { key, picture, txt, json } = self;
        let lacks = |what: &str| {
            DataError::file(path, format!("sample `{key}` {what}: add it or remove the sample"))
        };
        let captioned = txt.is_some() || json.is_some();
        match picture {
            Some(_) if !captioned => Err(lacks("has a picture but neither .txt nor .json")),
            None if captioned => Err(lacks("has a caption but no picture")),
            None => Ok(None),
            Some(picture) => Ok(Some(Location { file: file.clone(), key, picture, txt, json })),
        }
    }
}

/// Ids that a `.json` may hold.
#[derive(Deserialize)]
struct Ids {
    image_id: Option<Id>,
    text_id: Option<Id>,
}

impl TarShards {
    fn path(&self, shard: usize) -> &Path {
        self.paths.get(shard).map_or(Path::new(""), PathBuf::as_path)
    }

    fn read(&self, shard: usize, file: &File, member: &Member) -> Result<Vec<u8>, DataError> {
        // The length was checked when the member was found.
        let mut bytes = vec![0; member.length as usize];
        read_at(file, &mut bytes, member.offset).map_err(DataError::io(self.path(shard)))?;
        Ok(bytes)
    }

    fn wrong(&self, shard: usize, member: &Member, reason: impl std::fmt::Display) -> DataError {
        DataError::file(self.path(shard), format!("member `{}`: {reason}", member.name))
    }

    fn text(&self, shard: usize, file: &File, member: &Member) -> Result<String, DataError> {
        String::from_utf8(self.read(shard, file, member)?)
            .map_err(|_| self.wrong(shard, member, "is not UTF-8: save it as UTF-8"))
    }
}

impl Shards for TarShards {
    type Entry = Location;

    fn counts(&self) -> &Arc<[usize]> {
        &self.counts
    }

    fn load(&self, shard: usize) -> Result<Vec<Location>, DataError> {
        let (path, counted) = (self.path(shard), self.counts.get(shard).copied().unwrap_or(0));
        let samples = locate(path)?;
        match samples.len() == counted {
            true => Ok(samples),
            false => Err(DataError::file(
                path,
                format!(
                    "holds {} samples where {counted} were expected: correct or remove {SIZES}",
                    samples.len()
                ),
            )),
        }
    }

    fn content(&self, shard: usize, entry: Location) -> Result<Content, DataError> {
        let Location { file, key, picture, txt, json } = entry;
        let mut content = Content {
            image_id: Id::Text(String::new()),
            text_id: None,
            captions: Vec::new(),
            image: self.read(shard, &file, &picture)?,
        };
        let mut image_id = None;
        if let Some(txt) = &txt {
            content.captions.push(self.text(shard, &file, txt)?.trim().to_string());
        }
        if let Some(json) = &json {
            let text = self.text(shard, &file, json)?;
            let text = text.trim_start_matches('\u{feff}');
            let failed = |reason: String| self.wrong(shard, json, reason);
            let object: serde_json::Map<String, Value> = serde_json::from_str(text)
                .map_err(|error| failed(format!("{error}: expected a JSON object")))?;
            if txt.is_none() {
                content.captions = captions(&object).map_err(failed)?;
                if content.captions.is_empty() {
                    return Err(failed("has neither `caption` nor `text`".to_string()));
                }
            }
            // Ids of another kind than ours are no ids.
            if let Ok(ids) = Ids::deserialize(Value::Object(object)) {
                image_id = ids.image_id;
                content.text_id = ids.text_id;
            }
        }
        content.image_id = image_id.unwrap_or_else(|| {
            let stem = self.path(shard).file_stem().unwrap_or_default().to_string_lossy();
            Id::Text(format!("{stem}/{key}"))
        });
        Ok(content)
    }
}
