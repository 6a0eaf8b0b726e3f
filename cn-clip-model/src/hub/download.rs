//! Downloads from the Hugging Face hub by the `hf-hub` crate, whole or not at all.
//!
//! The crate downloads into a cache of its own form, in the folder that will hold the file. It
//! continues a partial file, but checks neither size nor checksum and, trying again by itself,
//! may begin at the wrong byte: both are done here. A checked file is moved to its place.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hf_hub::{
    Cache, Repo,
    api::sync::{ApiBuilder, ApiRepo, Metadata},
};
use sha2::{Digest, Sha256};

/// Folder of what is not yet whole.
pub(super) const STAGING: &str = ".download";
/// Pause before a cut download is continued.
const PAUSE: Duration = Duration::from_millis(200);

/// A file of a repository.
pub(super) struct Remote<'a> {
    pub endpoint: &'a str,
    pub repository: &'a str,
    pub file: &'a str,
    pub progress: bool,
}

/// Downloads a file into a folder. A connection that is cut is taken up again for as long as each
/// try brings some bytes; what has come stays for the next call.
pub(super) fn download(remote: &Remote, folder: &Path) -> Result<PathBuf, String> {
    let staging = folder.join(STAGING);
    let at_folder = |error: io::Error| format!("{} cannot be written: {error}", folder.display());
    fs::create_dir_all(&staging).map_err(at_folder)?;
    let repo = Repo::model(remote.repository.to_string());
    let cache = Cache::new(staging.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(remote.endpoint.to_string())
        .with_token(None)
        .with_progress(remote.progress)
        .build()
        .map_err(|error| error.to_string())?;
    let url = api.repo(repo.clone()).url(remote.file);
    let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    loop {
        let metadata = api.metadata(&url).map_err(|error| failed(&error))?;
        let staged = Staged::new(&cache, &repo, remote.file, &metadata).map_err(|e| failed(&e))?;
        let before = length(&staged.part);
        match staged.fetch(&api.repo(repo.clone()), remote.file) {
            Ok(whole) => {
                staged.check(&whole).map_err(|reason| failed(&reason))?;
                let target = folder.join(remote.file);
                fs::rename(whole, &target).map_err(at_folder)?;
                // Other files may be on their way. What cannot be removed is harmless.
                let _ = fs::remove_dir_all(staging.join(repo.folder_name()));
                let _ = fs::remove_dir(&staging);
                return Ok(target);
            }
            Err(_) if length(&staged.part) > before => thread::sleep(PAUSE),
            Err(reason) => return Err(failed(&reason)),
        }
    }
}

/// Names and size of a file on its way.
struct Staged {
    blob: PathBuf,
    part: PathBuf,
    /// A link that `hf-hub` makes and refuses to make twice.
    pointer: PathBuf,
    size: u64,
    /// SHA-256 in hexadecimal, for large files.
    checksum: Option<String>,
}

impl Staged {
    fn new(cache: &Cache, repo: &Repo, file: &str, metadata: &Metadata) -> Result<Self, String> {
        let (etag, commit) = (metadata.etag(), metadata.commit_hash());
        // They become names of files.
        let name = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !text.is_empty() && text.len() <= 128 && text.bytes().all(plain)
        };
        if !name(etag) || !name(commit) {
            return Err(format!("the server calls the file {etag:?} of version {commit:?}"));
        }
        let cached = cache.repo(repo.clone());
        let blob = cached.blob_path(etag);
        let sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(Self {
            part: blob.with_extension("part"),
            blob,
            pointer: cached.pointer_path(commit).join(file),
            size: metadata.size() as u64,
            checksum: sha256.then(|| etag.to_ascii_lowercase()),
        })
    }

    /// One try; returns the path of a file of the right size.
    fn fetch(&self, api: &ApiRepo, file: &str) -> Result<PathBuf, String> {
        // The last byte may have come just before the end of the program.
        if length(&self.part) == self.size && self.size > 0 {
            return Ok(self.part.clone());
        }
        if length(&self.part) > self.size {
            fs::remove_file(&self.part).map_err(|error| error.to_string())?;
        }
        let _ = fs::remove_file(&self.pointer);
        api.download(file).map_err(|error| error.to_string())?;
        let length = length(&self.blob);
        if length != self.size {
            let kept = fs::rename(&self.blob, &self.part);
            kept.map_err(|error| error.to_string())?;
            return Err(format!("{length} bytes came of {}", self.size));
        }
        Ok(self.blob.clone())
    }

    /// Compares with the checksum, and removes a file that differs.
    fn check(&self, whole: &Path) -> Result<(), String> {
        let Some(expected) = &self.checksum else { return Ok(()) };
        let found = sha256(whole).map_err(|error| format!("{}: {error}", whole.display()))?;
        if found == *expected {
            return Ok(());
        }
        fs::remove_file(whole).map_err(|error| format!("{}: {error}", whole.display()))?;
        Err(format!(
            "what came has the SHA-256 {found} instead of {expected} and was thrown away: try again"
        ))
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
