//! Files and folders that appear whole or not at all.

use std::{
    fs::{self, File, Permissions},
    io,
    path::{Path, PathBuf},
};

use crate::ModelError;

/// The folder in which `path` lies.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".checkpoint-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(Permissions::from_mode(mode));
    }
    builder
}

/// Lets `write` fill a file, which then gets the name `path`. A failure leaves what was there.
pub(super) fn file(
    path: &Path,
    write: impl FnOnce(&File, &Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let failed = || ModelError::io(path);
    if path.is_dir() {
        return Err(failed()(io::ErrorKind::IsADirectory.into()));
    }
    let temporary = builder(0o666).tempfile_in(parent(path)).map_err(failed())?;
    write(temporary.as_file(), temporary.path())?;
    temporary.as_file().sync_all().map_err(failed())?;
    temporary.persist(path).map_err(|error| error.error).map_err(failed())?;
    Ok(())
}

/// Lets `write` fill a folder, which then gets the name `path`. Where there is a folder of that
/// name, the files are moved into it, each at once.
pub(super) fn folder(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let failed = || ModelError::io(path);
    let temporary = builder(0o777).tempdir_in(parent(path)).map_err(failed())?;
    write(temporary.path())?;
    let names: Result<Vec<PathBuf>, io::Error> =
        fs::read_dir(temporary.path()).map_err(failed())?.map(|file| Ok(file?.path())).collect();
    let names = names.map_err(failed())?;
    for name in &names {
        File::open(name).and_then(|file| file.sync_all()).map_err(failed())?;
    }
    if !path.exists() {
        let staged = temporary.keep();
        return fs::rename(&staged, path)
            .inspect_err(|_| drop(fs::remove_dir_all(&staged)))
            .map_err(failed());
    }
    for name in &names {
        let Some(file) = name.file_name() else { continue };
        fs::rename(name, path.join(file)).map_err(failed())?;
    }
    Ok(())
}
