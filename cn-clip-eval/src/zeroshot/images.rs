//! Pictures in one folder per class, in the order of torchvision's `ImageFolder`.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::ZeroShotError;

/// Endings of files that count as pictures, in any case.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];

/// Class folders and their pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    /// Names of the sub-folders, sorted; the position is the class.
    pub classes: Vec<String>,
    /// Pictures with their class, class by class.
    pub images: Vec<(PathBuf, usize)>,
}

impl ImageFolder {
    /// Lists the pictures under `root`.
    ///
    /// Within a class, folders at any depth are visited in the order of their whole paths, files by
    /// name; files with other endings are passed over, links are followed.
    ///
    /// # Errors
    /// [`ZeroShotError`] if `root` cannot be read, has no sub-folders, or one of them no picture.
    pub fn open(root: &Path) -> Result<Self, ZeroShotError> {
        let failed = |source| ZeroShotError::Read { path: root.to_owned(), source };
        let mut classes = Vec::new();
        for entry in fs::read_dir(root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                classes.push(name(&path)?);
            }
        }
        if classes.is_empty() {
            return Err(ZeroShotError::NoClasses { path: root.to_owned() });
        }
        classes.sort();
        let mut images = Vec::new();
        for (class, name) in classes.iter().enumerate() {
            let folder = root.join(name);
            let pictures = pictures(&folder)?;
            if pictures.is_empty() {
                let extensions = EXTENSIONS.join(", ");
                return Err(ZeroShotError::EmptyClass { path: folder, extensions });
            }
            images.extend(pictures.into_iter().map(|path| (path, class)));
        }
        Ok(Self { classes, images })
    }

    /// True classes of the pictures.
    pub fn targets(&self) -> Vec<usize> {
        self.images.iter().map(|&(_, class)| class).collect()
    }
}

fn name(path: &Path) -> Result<String, ZeroShotError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| ZeroShotError::Name { path: path.to_owned() })
}

/// Pictures under a class folder, sorted by the path of their folder, then by name.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>, ZeroShotError> {
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let entry = entry.map_err(|error| ZeroShotError::Read {
            path: error.path().unwrap_or(folder).to_owned(),
            source: error.into(),
        })?;
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let known = ending.is_some_and(|ending| {
            EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(ending))
        });
        if known && !entry.file_type().is_dir() {
            let parent = path.parent().unwrap_or(folder).as_os_str().to_owned();
            found.push((parent, entry.file_name().to_owned()));
        }
    }
    // Whole paths as strings: "a-b" comes before "a/e", which an order by components would not give.
    found.sort();
    Ok(found.into_iter().map(|(parent, name)| Path::new(&parent).join(name)).collect())
}

/// Reads class names, one per line, for `classes` class folders.
///
/// # Errors
/// [`ZeroShotError::LabelCount`] if the number of lines differs, [`ZeroShotError::BlankLabel`] and
/// [`ZeroShotError::LabelEncoding`] with the line.
pub fn read_labels(path: &Path, classes: usize) -> Result<Vec<String>, ZeroShotError> {
    let bytes =
        fs::read(path).map_err(|source| ZeroShotError::Read { path: path.to_owned(), source })?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut labels = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let (path, number) = (path.to_owned(), index + 1);
        match str::from_utf8(line).map(str::trim) {
            Ok("") => return Err(ZeroShotError::BlankLabel { path, line: number }),
            Ok(label) => labels.push(label.to_owned()),
            Err(_) => return Err(ZeroShotError::LabelEncoding { path, line: number }),
        }
    }
    if labels.len() != classes {
        let path = path.to_owned();
        return Err(ZeroShotError::LabelCount { path, labels: labels.len(), classes });
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/zeroshot").join(name)
    }

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn classes_and_pictures_come_in_torchvisions_order() {
        let folder = ImageFolder::open(&fixture("test")).unwrap();
        assert_eq!(folder.classes, ["0", "1", "2"]);
        assert_eq!(folder.targets(), [0, 0, 0, 1, 1, 1, 2, 2, 2]);
        let first: Vec<_> = folder.images[..3].iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(
            first,
            ["im_0.jpg", "im_1.png", "im_2.jpg"].map(|name| fixture("test").join("0").join(name))
        );
    }

    #[test]
    fn folders_inside_a_class_are_ordered_by_whole_paths() {
        let root = tempfile::tempdir().unwrap();
        let class = root.path().join("10");
        for name in
            ["z.JPG", "a/b.png", "a/e/b.png", "a-b/c.webp", "B.bmp", "notes.txt", "jpg", "x.jpeg"]
        {
            touch(&class.join(name));
        }
        touch(&root.path().join("2/only.tiff"));
        touch(&root.path().join("stray.png"));
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes, ["10", "2"]);
        let found: Vec<_> = folder
            .images
            .iter()
            .map(|(path, class)| {
                (path.strip_prefix(root.path()).unwrap().to_str().unwrap(), *class)
            })
            .collect();
        let expected = [
            ("10/B.bmp", 0),
            ("10/x.jpeg", 0),
            ("10/z.JPG", 0),
            ("10/a/b.png", 0),
            ("10/a-b/c.webp", 0),
            ("10/a/e/b.png", 0),
            ("2/only.tiff", 1),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn missing_empty_and_pictureless_folders_are_errors() {
        let root = tempfile::tempdir().unwrap();
        let open = |path: &Path| ImageFolder::open(path).unwrap_err();
        assert!(matches!(open(&root.path().join("none")), ZeroShotError::Read { .. }));
        assert!(matches!(open(root.path()), ZeroShotError::NoClasses { .. }));
        touch(&root.path().join("cat/1.png"));
        touch(&root.path().join("dog/1.txt"));
        let error = open(root.path()).to_string();
        assert!(error.contains("dog has no pictures (jpg, jpeg, png"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn circular_links_are_errors() {
        let root = tempfile::tempdir().unwrap();
        touch(&root.path().join("cat/1.png"));
        std::os::unix::fs::symlink(root.path().join("cat"), root.path().join("cat/again")).unwrap();
        assert!(matches!(ImageFolder::open(root.path()), Err(ZeroShotError::Read { .. })));
    }

    #[test]
    fn labels_are_one_per_class() {
        let path = fixture("label_cn.txt");
        assert_eq!(read_labels(&path, 3).unwrap(), ["飞机", "向日葵", "宫保鸡丁"]);
        let error = read_labels(&path, 4).unwrap_err();
        assert!(matches!(error, ZeroShotError::LabelCount { labels: 3, classes: 4, .. }));
        assert!(matches!(read_labels(Path::new("none"), 1), Err(ZeroShotError::Read { .. })));
    }

    #[test]
    fn bad_labels_are_named_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.txt");
        let labels = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_labels(&path, 2)
        };
        assert_eq!(labels(b"\xef\xbb\xbf a \r\nb\r\n").unwrap(), ["a", "b"]);
        assert!(matches!(labels(b"a\n \nb\n"), Err(ZeroShotError::BlankLabel { line: 2, .. })));
        assert!(matches!(labels(b"a\nb\n\n"), Err(ZeroShotError::BlankLabel { line: 3, .. })));
        assert!(matches!(labels(b""), Err(ZeroShotError::BlankLabel { line: 1, .. })));
        assert!(matches!(labels(b"a\n\xff"), Err(ZeroShotError::LabelEncoding { line: 2, .. })));
    }
}
