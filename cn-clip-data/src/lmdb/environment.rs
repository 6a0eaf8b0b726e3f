//! Opening of LMDB environments.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use heed::{Database, Env, EnvFlags, EnvOpenOptions, WithoutTls, types::Bytes};

use crate::error::DataError;

/// An environment with its unnamed database, opened for reading.
#[derive(Clone)]
pub(super) struct Environment {
    pub path: PathBuf,
    opened: Arc<Opened>,
}

struct Opened {
    env: Env<WithoutTls>,
    database: Database<Bytes, Bytes>,
}

/// What is open, by canonical path: LMDB wants a file opened only once in a process.
static OPENED: LazyLock<Mutex<HashMap<PathBuf, Weak<Opened>>>> = LazyLock::new(Mutex::default);

impl Environment {
    /// Opens a directory that is not being written to. No lock file is needed or made, so
    /// read-only media work.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |error: heed::Error| DataError::lmdb(path, error);
        let length = check(path)?;
        let canonical = path.canonicalize().map_err(DataError::io(path))?;
        let mut open = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(&canonical).and_then(Weak::upgrade) {
            return Ok(Self { path: path.to_path_buf(), opened });
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(length);
        // SAFETY: the file is whole (checked above), is mapped read-only, and nobody writes to a
        // finished data set: a rebuild replaces the directory and leaves this file as it is.
        let env = unsafe {
            options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK | EnvFlags::NO_READ_AHEAD);
            match options.open(&canonical) {
                // Another thread is just closing it.
                Err(heed::Error::EnvAlreadyOpened) => {
                    if let Some(closing) = heed::env_closing_event(&canonical) {
                        closing.wait();
                    }
                    options.open(&canonical)
                }
                opened => opened,
            }
            .map_err(failed)?
        };
        let txn = env.read_txn().map_err(failed)?;
        let database = env.open_database(&txn, None).map_err(failed)?;
        let database =
            database.ok_or_else(|| DataError::lmdb(path, "holds no database: build it again"))?;
        drop(txn);
        let opened = Arc::new(Opened { env, database });
        open.retain(|_, opened| opened.strong_count() > 0);
        open.insert(canonical, Arc::downgrade(&opened));
        Ok(Self { path: path.to_path_buf(), opened })
    }

    /// Reads a value, if the key is there.
    pub fn get<T>(&self, key: &str, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, DataError> {
        let failed = |error: heed::Error| DataError::lmdb(&self.path, error);
        // LMDB refuses longer keys; nothing can be stored under one.
        if key.is_empty() || key.len() > 511 {
            return Ok(None);
        }
        let txn = self.opened.env.read_txn().map_err(failed)?;
        Ok(self.opened.database.get(&txn, key.as_bytes()).map_err(failed)?.map(read))
    }

    /// A number stored as decimal text.
    pub fn count(&self, key: &str) -> Result<usize, DataError> {
        let parse = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
        self.get(key, parse)?.flatten().ok_or_else(|| {
            DataError::lmdb(&self.path, format!("has no `{key}`: build it with build-lmdb-dataset"))
        })
    }

    /// Every key, in byte order.
    pub fn keys(&self) -> Result<Vec<String>, DataError> {
        let failed = |error: heed::Error| DataError::lmdb(&self.path, error);
        let txn = self.opened.env.read_txn().map_err(failed)?;
        let mut keys = Vec::new();
        for entry in self.opened.database.iter(&txn).map_err(failed)? {
            let (key, _) = entry.map_err(failed)?;
            keys.push(String::from_utf8_lossy(key).into_owned());
        }
        Ok(keys)
    }
}

/// Checks that the file is an LMDB database and not cut off, which would crash on access; returns
/// its length.
fn check(path: &Path) -> Result<usize, DataError> {
    const MAGIC: u32 = 0xbeef_c0de;
    const META: usize = 152;
    let file = path.join("data.mdb");
    if !file.is_file() {
        return Err(DataError::lmdb(
            path,
            "is not an LMDB directory (no data.mdb): build it with `cn-clip build-lmdb-dataset`, \
             and name the split's directory, which holds imgs/ and pairs/",
        ));
    }
    let mut opened = File::open(&file).map_err(DataError::io(&file))?;
    let length = opened.metadata().map_err(DataError::io(&file))?.len();
    let damaged = |reason: &str| DataError::lmdb(&file, format!("{reason}: build it again"));
    let mut head = Vec::new();
    opened.by_ref().take(2 << 16).read_to_end(&mut head).map_err(DataError::io(&file))?;
    let u32_at = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?))
    };
    let u64_at = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?))
    };
    // Two copies of the header, one page apart: 16 bytes of page header, then magic, version,
    // address, map size, two databases of 48 bytes (the first begins with the page size), the last
    // page and the transaction.
    let page = u32_at(40).unwrap_or(0) as usize;
    if u32_at(16) != Some(MAGIC) || !page.is_power_of_two() || !(256..=1 << 16).contains(&page) {
        return Err(damaged("is not an LMDB file"));
    }
    let newest = [0, page]
        .into_iter()
        .filter(|start| u32_at(start + 16) == Some(MAGIC) && head.len() >= start + META)
        .max_by_key(|start| u64_at(start + 144));
    let last_page = newest.and_then(|start| u64_at(start + 136)).unwrap_or(u64::MAX);
    let needed = last_page.saturating_add(1).saturating_mul(page as u64);
    if needed > length {
        return Err(damaged("is cut off"));
    }
    usize::try_from(length).map_err(|_| damaged("is too large for this machine"))
}
