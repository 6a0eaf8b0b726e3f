//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A buffered file under a temporary name beside its target; [`AtomicFile::finish`] puts it in place.
///
/// Dropped before that, it leaves nothing behind and whatever stood under the name stays as it was.
/// A target that exists and is no regular file (a pipe, `/dev/stdout`) is written straight through;
/// a symbolic link is followed.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<Sink>,
}

#[derive(Debug)]
enum Sink {
    Temporary(NamedTempFile, PathBuf),
    Direct(File),
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `path`, which must exist.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or `path` is a folder.
    pub fn create(path: &Path) -> io::Result<Self> {
        let sink = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => Sink::Direct(File::options().write(true).open(path)?),
            Ok(_) => Sink::beside(fs::canonicalize(path)?)?,
            Err(_) => Sink::beside(path.to_owned())?,
        };
        Ok(Self { writer: BufWriter::with_capacity(1 << 18, sink) })
    }

    /// Flushes everything to the disk and renames the file to its final name.
    ///
    /// # Errors
    /// When the disk is full or the rename fails; the target is then as it was.
    pub fn finish(self) -> io::Result<()> {
        match self.writer.into_inner().map_err(io::IntoInnerError::into_error)? {
            Sink::Temporary(file, target) => {
                file.as_file().sync_all()?;
                file.persist(target).map(drop).map_err(|error| error.error)
            }
            Sink::Direct(_) => Ok(()),
        }
    }
}

/// Replaces the file at `path` by `bytes`.
///
/// # Errors
/// When the folder is missing or not writable, or the disk is full; the file is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.finish()
}

/// Refuses an `output` that is one of the files it is made from, whatever the paths look like.
///
/// # Errors
/// Names the input that would be replaced.
pub fn check_not_input(output: &Path, inputs: &[&Path]) -> io::Result<()> {
    let Ok(output) = fs::canonicalize(output) else { return Ok(()) };
    match inputs.iter().find(|input| fs::canonicalize(input).is_ok_and(|input| input == output)) {
        Some(input) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the output would replace the input {}", input.display()),
        )),
        None => Ok(()),
    }
}

impl Sink {
    fn beside(target: PathBuf) -> io::Result<Self> {
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder)?;
        Ok(Self::Temporary(file, target))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary(file, _) => file.write(bytes),
            Self::Direct(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Temporary(file, _) => file.flush(),
            Self::Direct(file) => file.flush(),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn target_changes_only_when_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["out"]);

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn missing_folder_and_folder_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(&folder.path().join("none/out")).is_err());
        assert!(AtomicFile::create(folder.path()).is_err());
    }

    #[test]
    fn inputs_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&a, "").unwrap();
        let other_way = folder.path().join(".").join("a");
        let error = check_not_input(&other_way, &[&b, &a]).unwrap_err().to_string();
        assert_eq!(error, format!("the output would replace the input {}", a.display()));
        check_not_input(&b, &[&a, &b]).unwrap();
        check_not_input(&a, &[&b]).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_devices_written_and_modes_ordinary() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        let ordinary = fs::metadata(&real).unwrap().permissions().mode();
        symlink(&real, &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode(), ordinary);

        let mut full = AtomicFile::create(Path::new("/dev/null")).unwrap();
        full.write_all(b"gone").unwrap();
        full.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_an_error() {
        let mut full = AtomicFile::create(Path::new("/dev/full")).unwrap();
        full.write_all(b"lost").unwrap();
        assert_eq!(full.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
