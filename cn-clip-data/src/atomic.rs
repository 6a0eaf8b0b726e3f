//! Files that are whole or absent.

use std::{
    io::{self, Write},
    path::Path,
};

/// Replaces the file at `path` by `bytes`: they are written to a temporary file beside it, flushed
/// to disk and renamed, so that a crash or a full disk leaves the former file as it was.
///
/// # Errors
/// When the directory of `path` is missing or not writable, or the disk is full.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::{fs::Permissions, os::unix::fs::PermissionsExt};
        // The umask applies, as to any new file.
        builder.permissions(Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for bytes in [&b"first"[..], b"second"] {
            write_atomically(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_target_that_cannot_be_replaced_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write_atomically(&directory.path().join("missing/file"), b"").is_err());
        let occupied = directory.path().join("directory");
        fs::create_dir(&occupied).unwrap();
        assert!(write_atomically(&occupied, b"bytes").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
