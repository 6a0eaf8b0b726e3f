//! The picture files that the page shows.

use std::{
    fs,
    io::Cursor,
    path::{Component, Path, PathBuf},
};

use cn_clip_data::{
    DataError, Id,
    forms::TsvImages,
    image::{Format, ImageError, Picture, SizeLimit},
    lmdb::LmdbImages,
};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};

use super::ServeError;

/// Quality of the JPEG of a thumbnail.
const QUALITY: u8 = 85;

/// Extensions tried where a folder has no file whose name is the id.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// Picture files by id.
pub struct Pictures {
    source: Source,
}

enum Source {
    Lmdb(LmdbImages),
    Tsv(TsvImages),
    /// A picture's id is its path from here, with or without the extension.
    Folder(PathBuf),
}

impl Pictures {
    /// Opens an LMDB split or its `imgs` directory, a `<split>_imgs.tsv`, or a folder of pictures.
    ///
    /// # Errors
    /// [`ServeError::NoPictures`] for anything else, [`ServeError::Pictures`] for a damaged file.
    pub fn open(path: &Path) -> Result<Self, ServeError> {
        let lmdb = |path: &Path| path.join("data.mdb").is_file();
        let source = if lmdb(path) {
            Source::Lmdb(LmdbImages::open(path)?)
        } else if lmdb(&path.join("imgs")) {
            Source::Lmdb(LmdbImages::open(path.join("imgs"))?)
        } else if path.is_dir() {
            Source::Folder(path.to_path_buf())
        } else if path.is_file() {
            Source::Tsv(TsvImages::open(path)?)
        } else {
            let reason = "does not exist: name an LMDB, a <split>_imgs.tsv or a folder of pictures";
            return Err(ServeError::NoPictures { path: path.into(), reason: reason.into() });
        };
        Ok(Self { source })
    }

    /// The bytes of a picture file.
    ///
    /// # Errors
    /// [`DataError::MissingImage`] if there is none of this id.
    pub fn file(&self, id: &Id) -> Result<Vec<u8>, DataError> {
        match &self.source {
            Source::Lmdb(images) => images.image(id),
            Source::Tsv(images) => images.image(id),
            Source::Folder(folder) => {
                let path = find(folder, &id.to_string());
                let missing = || DataError::MissingImage { id: id.clone(), path: folder.clone() };
                let path = path.ok_or_else(missing)?;
                fs::read(&path).map_err(DataError::io(path))
            }
        }
    }
}

/// The file of an id below a folder; never one outside.
fn find(folder: &Path, id: &str) -> Option<PathBuf> {
    let relative = Path::new(id);
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(inside) {
        return None;
    }
    let path = folder.join(relative);
    let with = |extension: &&str| {
        let mut name = path.clone().into_os_string();
        name.push(".");
        name.push(extension);
        PathBuf::from(name)
    };
    let others = EXTENSIONS.iter().map(with);
    std::iter::once(path.clone()).chain(others).find(|path| path.is_file())
}

/// A picture file of a format that browsers know.
pub(super) struct Thumbnail {
    pub content_type: &'static str,
    pub file: Vec<u8>,
}

/// The file as it is where neither side exceeds `side`; else a JPEG that fits.
pub(super) fn thumbnail(
    file: Vec<u8>,
    side: usize,
    limit: SizeLimit,
) -> Result<Thumbnail, ImageError> {
    let picture = Picture::decode_within(&file, limit)?;
    let (width, height) = (picture.width(), picture.height());
    let longest = width.max(height);
    if longest <= side {
        return Ok(Thumbnail { content_type: content_type(&file), file });
    }
    let scaled = |length: usize| (length * side).div_ceil(longest).max(1);
    let small = picture.resize(scaled(width), scaled(height)).into_rgb();
    let mut jpeg = Cursor::new(Vec::new());
    let (width, height) = (small.width as u32, small.height as u32);
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&small.pixels, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| ImageError::Damaged { format: Format::Jpeg, reason: error.to_string() })?;
    Ok(Thumbnail { content_type: "image/jpeg", file: jpeg.into_inner() })
}

/// Media type of a picture file by its content.
pub(super) fn content_type(file: &[u8]) -> &'static str {
    match Format::detect(file) {
        Some(Format::Png) => "image/png",
        Some(Format::Jpeg) => "image/jpeg",
        Some(Format::WebP) => "image/webp",
        Some(Format::Gif) => "image/gif",
        Some(Format::Bmp) => "image/bmp",
        None => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    #[test]
    fn lmdb_tsv_and_folder_give_the_same_file() {
        let lmdb = Pictures::open(&fixture("dataset/lmdb/valid")).unwrap();
        let imgs = Pictures::open(&fixture("dataset/lmdb/valid/imgs")).unwrap();
        let tsv = Pictures::open(&fixture("dataset/valid_imgs.tsv")).unwrap();
        let Source::Lmdb(images) = &imgs.source else { panic!("no LMDB") };
        let folder = tempfile::tempdir().unwrap();
        for id in images.ids().unwrap() {
            let file = lmdb.file(&id).unwrap();
            assert_eq!(file, imgs.file(&id).unwrap());
            assert_eq!(file, tsv.file(&id).unwrap());
            fs::write(folder.path().join(format!("{id}.png")), &file).unwrap();
            let folder = Pictures::open(folder.path()).unwrap();
            assert_eq!(file, folder.file(&id).unwrap());
            assert_eq!(file, folder.file(&Id::Text(format!("{id}.png"))).unwrap());
        }
        for pictures in [lmdb, imgs, tsv, Pictures::open(folder.path()).unwrap()] {
            let missing = pictures.file(&Id::Int(-1));
            assert!(matches!(missing, Err(DataError::MissingImage { .. })), "{missing:?}");
        }
        let error = Pictures::open(Path::new("no/such/place")).err().unwrap().to_string();
        assert!(error.starts_with("no/such/place: does not exist"), "{error}");
    }

    #[test]
    fn a_folder_is_never_left() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("pictures");
        fs::create_dir_all(folder.join("a")).unwrap();
        for name in ["secret.png", "pictures/a/b.png"] {
            fs::write(outer.path().join(name), name).unwrap();
        }
        let secret = outer.path().join("secret.png").display().to_string();
        for id in ["../secret.png", "../secret", "a/../../secret.png", &secret, "", "a"] {
            assert_eq!(find(&folder, id), None, "{id}");
        }
        assert_eq!(find(&folder, "a/b.png"), Some(folder.join("a/b.png")));
        assert_eq!(find(&folder, "./a/b"), Some(folder.join("./a/b.png")));
    }

    #[test]
    fn large_pictures_become_small_jpegs_and_small_ones_stay() {
        let limit = SizeLimit::default();
        let file = fs::read(fixture("preprocess/08_wide.png")).unwrap();
        let picture = Picture::decode(&file).unwrap();
        let (width, height) = (picture.width(), picture.height());
        assert!(width > height && width > 64);
        let small = thumbnail(file.clone(), 64, limit).unwrap();
        assert_eq!(small.content_type, "image/jpeg");
        let decoded = Picture::decode(&small.file).unwrap();
        assert_eq!(decoded.width(), 64);
        assert_eq!(decoded.height(), (height * 64).div_ceil(width));
        let same = thumbnail(file.clone(), width, limit).unwrap();
        assert_eq!((same.content_type, same.file), ("image/png", file.clone()));
        let limit = SizeLimit { pixels: 100, side: u64::MAX };
        assert!(matches!(thumbnail(file, 64, limit), Err(ImageError::TooLarge { .. })));
    }
}
