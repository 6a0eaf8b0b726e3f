//! Reading of LMDB files.
//!
//! By positioned reads and with every number checked, where the LMDB library maps the file and
//! trusts it: a damaged file would end the process there. Read-only media and network drives work,
//! and no lock file is needed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::page::{
    Damaged, HEADER, Kind, Page, PageNumber, Value, check_overflow, u16_at, u32_at, u64_at,
};
use crate::{error::DataError, pread::read_at};

const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
/// Bytes of a header page that are used.
const META: usize = 152;
/// Levels of a tree at most; LMDB has the same limit.
const MAX_DEPTH: usize = 32;
/// Flags of a database whose keys are ordered otherwise or have several values.
const UNUSUAL: u16 = 0x7e;
/// Root of an empty database.
const EMPTY: PageNumber = u64::MAX;

/// A directory with a database file. The file stays what it was when it was opened: a rebuild
/// replaces the directory.
#[derive(Clone)]
pub(super) struct Environment {
    pub path: PathBuf,
    file: Arc<File>,
    length: u64,
    page: usize,
    root: PageNumber,
}

impl Environment {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let name = path.join("data.mdb");
        if !name.is_file() {
            return Err(DataError::lmdb(
                path,
                "is not an LMDB directory (no data.mdb): build it with `cn-clip \
                 build-lmdb-dataset`, and name the split's directory, which holds imgs/ and pairs/",
            ));
        }
        let file = File::open(&name).map_err(DataError::io(&name))?;
        let length = file.metadata().map_err(DataError::io(&name))?.len();
        let damaged = |reason: &str| DataError::lmdb(&name, format!("{reason}: build it again"));
        let read = |at: u64| -> Result<Vec<u8>, DataError> {
            let mut bytes = vec![0; META.min(length.saturating_sub(at) as usize)];
            read_at(&file, &mut bytes, at).map_err(DataError::io(&name))?;
            Ok(bytes)
        };
        // Two copies of the header, one page apart.
        let first = read(0)?;
        let page = u32_at(&first, 40).unwrap_or(0) as usize;
        let is_meta = |bytes: &Vec<u8>| bytes.len() == META && u32_at(bytes, 16) == Ok(MAGIC);
        if !is_meta(&first) || !page.is_power_of_two() || !(256..=1 << 16).contains(&page) {
            return Err(damaged("is not an LMDB file"));
        }
        let metas = [first, read(page as u64)?];
        let newest =
            metas.iter().filter(|meta| is_meta(meta)).max_by_key(|meta| u64_at(meta, 144).ok());
        let number = |at: usize| newest.and_then(|meta| u64_at(meta, at).ok()).unwrap_or(u64::MAX);
        if newest.is_some_and(|meta| u32_at(meta, 20) != Ok(VERSION)) {
            return Err(damaged("has another version of the LMDB format"));
        }
        if newest.is_some_and(|meta| u16_at(meta, 92).map_or(true, |flags| flags & UNUSUAL != 0)) {
            return Err(damaged("has keys of another kind than a data set"));
        }
        if number(136).saturating_add(1).saturating_mul(page as u64) > length {
            return Err(damaged("is cut off"));
        }
        let (path, root) = (path.to_path_buf(), number(128));
        Ok(Self { path, file: Arc::new(file), length, page, root })
    }

    /// Reads a value, if the key is there.
    pub fn get<T>(&self, key: &str, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, DataError> {
        let mut number = self.root;
        if number == EMPTY {
            return Ok(None);
        }
        for _ in 0..MAX_DEPTH {
            let page = self.tree_page(number)?;
            number = match page.kind() {
                Kind::Branch => {
                    let child = page.descend(key.as_bytes()).and_then(|index| page.child(index));
                    child.map_err(|Damaged| self.damaged())?
                }
                Kind::Leaf => {
                    let found = page.find(key.as_bytes()).map_err(|Damaged| self.damaged())?;
                    let Some(index) = found else { return Ok(None) };
                    return match page.value(index).map_err(|Damaged| self.damaged())? {
                        Value::Here(bytes) => Ok(Some(read(bytes))),
                        Value::Overflow { page, length } => {
                            Ok(Some(read(&self.overflow(page, length)?)))
                        }
                    };
                }
            };
        }
        Err(self.damaged())
    }

    /// A number stored as decimal text.
    pub fn count(&self, key: &str) -> Result<usize, DataError> {
        let parse = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
        self.get(key, parse)?.flatten().ok_or_else(|| {
            DataError::lmdb(&self.path, format!("has no `{key}`: build it with build-lmdb-dataset"))
        })
    }

    /// Every key, in byte order, read as they are asked for. An error is the last.
    pub fn keys(&self) -> Keys {
        let root = (self.root != EMPTY).then_some(self.root);
        let left = self.length / self.page as u64;
        let bytes = self.length;
        Keys { environment: self.clone(), root, path: Vec::new(), left, bytes }
    }

    fn tree_page(&self, number: PageNumber) -> Result<Page, DataError> {
        let bytes = self.read(number, self.page as u64)?;
        Page::new(bytes, number).map_err(|Damaged| self.damaged())
    }

    fn overflow(&self, page: PageNumber, length: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = self.read(page, HEADER as u64 + length)?;
        check_overflow(&bytes, page).map_err(|Damaged| self.damaged())?;
        bytes.drain(..HEADER);
        Ok(bytes)
    }

    /// Bytes of the file from the start of a page on.
    fn read(&self, page: PageNumber, length: u64) -> Result<Vec<u8>, DataError> {
        let start = page.checked_mul(self.page as u64);
        let inside = |start: &u64| start.checked_add(length).is_some_and(|end| end <= self.length);
        let start = start.filter(inside).ok_or_else(|| self.damaged())?;
        let mut bytes = vec![0; length as usize];
        let failed = |error| DataError::io(self.path.join("data.mdb"))(error);
        read_at(&self.file, &mut bytes, start).map_err(failed)?;
        Ok(bytes)
    }

    fn damaged(&self) -> DataError {
        DataError::lmdb(self.path.join("data.mdb"), "is damaged: build it again")
    }
}

/// Keys of a database.
pub(super) struct Keys {
    environment: Environment,
    /// The root, until it is read.
    root: Option<PageNumber>,
    /// Pages on the way down, with the node that comes next.
    path: Vec<(Page, usize)>,
    /// Pages that may still be visited: a sound tree has each page once.
    left: u64,
    /// Bytes that keys may still have: damaged nodes may share those of one.
    bytes: u64,
}

impl Keys {
    fn advance(&mut self) -> Result<Option<String>, DataError> {
        if let Some(root) = self.root.take() {
            self.path.push((self.environment.tree_page(root)?, 0));
        }
        while let Some((page, next)) = self.path.last_mut() {
            let damaged = |Damaged| self.environment.damaged();
            let index = *next;
            *next += 1;
            if index >= page.count() {
                self.path.pop();
                continue;
            }
            match page.kind() {
                Kind::Leaf => {
                    let key = page.key(index).map_err(damaged)?;
                    let rest = self.bytes.checked_sub(key.len() as u64);
                    self.bytes = rest.ok_or_else(|| self.environment.damaged())?;
                    return Ok(Some(String::from_utf8_lossy(key).into_owned()));
                }
                Kind::Branch => {
                    let child = page.child(index).map_err(damaged)?;
                    let left = self.left.checked_sub(1).filter(|_| self.path.len() < MAX_DEPTH);
                    self.left = left.ok_or_else(|| self.environment.damaged())?;
                    self.path.push((self.environment.tree_page(child)?, 0));
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Keys {
    type Item = Result<String, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.advance().transpose();
        if matches!(key, Some(Err(_))) {
            self.path.clear();
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use heed::{EnvOpenOptions, types::Bytes};
    use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

    use super::*;

    fn fixture(part: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/dataset/lmdb")).join(part)
    }

    #[test]
    fn what_the_library_writes_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let mut expected = BTreeMap::new();
        for index in 0..20_000 {
            let length = rng.random_range(1..=if index % 50 == 0 { 511 } else { 12 });
            let key: String = (0..length).map(|_| rng.random_range('0'..='z')).collect();
            let size = if index % 200 == 0 { 100_000 } else { 60 };
            let mut value = vec![0; rng.random_range(0..size)];
            rng.fill_bytes(&mut value);
            expected.insert(key, value);
        }
        // SAFETY: nobody else knows this directory.
        let env =
            unsafe { EnvOpenOptions::new().map_size(256 << 20).open(directory.path()).unwrap() };
        let mut txn = env.write_txn().unwrap();
        let database = env.create_database::<Bytes, Bytes>(&mut txn, None).unwrap();
        for (key, value) in &expected {
            database.put(&mut txn, key.as_bytes(), value).unwrap();
        }
        txn.commit().unwrap();
        let ours = Environment::open(directory.path()).unwrap();
        assert!(ours.keys().map(Result::unwrap).eq(expected.keys().cloned()));
        for (key, value) in &expected {
            assert!(ours.get(key, |bytes| bytes == value).unwrap().unwrap(), "{key}");
        }
        for absent in ["", "0", "zzz!", "absent", &"x".repeat(600)] {
            assert_eq!(ours.get(absent, |_| ()).unwrap().is_some(), expected.contains_key(absent));
        }
    }

    #[test]
    fn an_empty_database_has_no_keys() {
        let directory = tempfile::tempdir().unwrap();
        // SAFETY: nobody else knows this directory.
        let env =
            unsafe { EnvOpenOptions::new().map_size(1 << 20).open(directory.path()).unwrap() };
        let mut txn = env.write_txn().unwrap();
        env.create_database::<Bytes, Bytes>(&mut txn, None).unwrap();
        txn.commit().unwrap();
        let ours = Environment::open(directory.path()).unwrap();
        assert!(ours.keys().next().is_none());
        assert!(ours.get("a", |_| ()).unwrap().is_none());
    }

    /// Reads everything there is; whatever happens must be a result.
    fn read_all(directory: &Path) -> Result<usize, DataError> {
        let environment = Environment::open(directory)?;
        let mut bytes = 0;
        for key in environment.keys() {
            bytes += environment.get(&key?, <[u8]>::len)?.unwrap_or(0);
        }
        Ok(bytes)
    }

    #[test]
    fn damage_is_an_error_and_never_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data.mdb");
        let mut rng = StdRng::seed_from_u64(2);
        let mut errors = 0;
        for part in ["train/imgs", "train/pairs", "valid/imgs", "test/pairs"] {
            let sound = fs::read(fixture(part).join("data.mdb")).unwrap();
            fs::write(&file, &sound).unwrap();
            read_all(directory.path()).unwrap();
            for _ in 0..600 {
                let mut damaged = sound.clone();
                // Most of a page of values is data: aim at the beginnings of pages too.
                let page = rng.random_range(0..damaged.len() / 4096) * 4096;
                let range = if rng.random() { 64 } else { 4096 };
                let at = page + rng.random_range(0..range);
                let count = rng.random_range(1..=8).min(damaged.len() - at);
                match rng.random_range(0..3) {
                    0 => damaged[at] ^= 1 << rng.random_range(0..8),
                    1 => damaged[at..at + count].fill(0xff),
                    _ => rng.fill_bytes(&mut damaged[at..at + count]),
                }
                fs::write(&file, &damaged).unwrap();
                if let Err(error) = read_all(directory.path()) {
                    assert!(error.to_string().contains("build it again"), "{error}");
                    errors += 1;
                }
            }
        }
        assert!(errors > 200, "{errors}");
    }

    #[test]
    fn nodes_that_share_a_key_do_not_multiply_it() {
        // Two headers and a leaf with 30,000 nodes, all of them the same with a key of 4,000 bytes.
        const PAGE: usize = 1 << 16;
        let mut bytes = vec![0; 3 * PAGE];
        for start in [0, PAGE] {
            bytes[start + 16..start + 20].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[start + 20..start + 24].copy_from_slice(&VERSION.to_le_bytes());
            bytes[start + 40..start + 44].copy_from_slice(&(PAGE as u32).to_le_bytes());
            bytes[start + 128..start + 136].copy_from_slice(&2u64.to_le_bytes());
            bytes[start + 136..start + 144].copy_from_slice(&2u64.to_le_bytes());
        }
        let (leaf, node, count) = (2 * PAGE, 60_016u16, 30_000usize);
        bytes[leaf..leaf + 8].copy_from_slice(&2u64.to_le_bytes());
        bytes[leaf + 10..leaf + 12].copy_from_slice(&2u16.to_le_bytes());
        bytes[leaf + 12..leaf + 14].copy_from_slice(&(16 + 2 * count as u16).to_le_bytes());
        for index in 0..count {
            let at = leaf + 16 + 2 * index;
            bytes[at..at + 2].copy_from_slice(&node.to_le_bytes());
        }
        let key_size = leaf + usize::from(node) + 6;
        bytes[key_size..key_size + 2].copy_from_slice(&4000u16.to_le_bytes());
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("data.mdb"), &bytes).unwrap();
        let environment = Environment::open(directory.path()).unwrap();
        let page = environment.tree_page(2).unwrap();
        assert_eq!((page.count(), page.key(count - 1).unwrap().len()), (count, 4000));
        assert!(
            environment.keys().find_map(Result::err).unwrap().to_string().contains("is damaged")
        );
    }

    #[test]
    fn a_page_that_leads_to_itself_ends() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(fixture("train/imgs").join("data.mdb")).unwrap();
        let transaction = |page: usize| u64_at(&bytes, page + 144).unwrap();
        let newest = if transaction(0) > transaction(4096) { 0 } else { 4096 };
        let root = u64_at(&bytes, newest + 128).unwrap();
        let at = root as usize * 4096;
        // A branch with one node, which has the number of its own page.
        bytes[at + 10..at + 12].copy_from_slice(&1u16.to_le_bytes());
        bytes[at + 12..at + 14].copy_from_slice(&18u16.to_le_bytes());
        bytes[at + 16..at + 18].copy_from_slice(&100u16.to_le_bytes());
        bytes[at + 100..at + 108].copy_from_slice(&[root as u8, 0, 0, 0, 0, 0, 0, 0]);
        fs::write(directory.path().join("data.mdb"), &bytes).unwrap();
        let environment = Environment::open(directory.path()).unwrap();
        let error = environment.keys().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("is damaged"));
        assert!(environment.get("1", |_| ()).unwrap_err().to_string().contains("is damaged"));
    }
}
