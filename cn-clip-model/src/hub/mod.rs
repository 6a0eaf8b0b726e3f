//! Published weights by name: where they lie, what is made of them, and where they come from.
//!
//! Official files are looked for in a folder of one's own, in `CN_CLIP_HOME`, in the folder of the
//! Python program (`~/.cache/clip`) and in the cache of the Hugging Face hub. What is nowhere is
//! downloaded (feature `download`) into the first of these folders. When a file is first loaded, a
//! Burn record is written beside it, which loads faster.

#[cfg(feature = "download")]
mod download;
mod record;
#[cfg(all(test, feature = "download"))]
mod server;
#[cfg(test)]
mod tests;

use std::{
    env,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use hf_hub::{Cache, Repo};

use crate::{Clip, ClipConfig, ModelError, config::published_models};

/// Published models and their repositories on the Hugging Face hub.
const REPOSITORIES: &[(&str, &str)] = &[
    ("ViT-B-16", "OFA-Sys/chinese-clip-vit-base-patch16"),
    ("ViT-L-14", "OFA-Sys/chinese-clip-vit-large-patch14"),
    ("ViT-L-14-336", "OFA-Sys/chinese-clip-vit-large-patch14-336px"),
    ("ViT-H-14", "OFA-Sys/chinese-clip-vit-huge-patch14"),
    ("RN50", "OFA-Sys/chinese-clip-rn50"),
];
/// Weights that other programs have left in the cache of the Hugging Face hub.
const TRANSFORMERS_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// Where published weights are looked for.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "download"), allow(dead_code))] // What only downloads need.
pub struct Hub {
    /// Searched in this order; the first takes what is downloaded.
    folders: Vec<PathBuf>,
    /// Cache of the Hugging Face hub.
    cache: Option<PathBuf>,
    endpoint: String,
    offline: bool,
    progress: bool,
}

/// A published model.
struct Published {
    name: &'static str,
    repository: &'static str,
    /// The official file.
    file: String,
}

impl Hub {
    /// The places that the environment names, after `root` if that is given: `CN_CLIP_HOME`,
    /// `~/.cache/clip`, and the cache of the Hugging Face hub (`HF_HUB_CACHE` or `HF_HOME`).
    ///
    /// Downloads come from `HF_ENDPOINT`, and none is made where `HF_HUB_OFFLINE` is set.
    pub fn from_env(root: Option<&Path>) -> Self {
        let value = |name| env::var_os(name).filter(|value| !value.is_empty());
        let folder = |name| value(name).map(PathBuf::from);
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let hidden = |name: &str| home.as_ref().map(|home| home.join(".cache").join(name));
        let folders = [root.map(Path::to_path_buf), folder("CN_CLIP_HOME"), hidden("clip")];
        let cache = folder("HF_HUB_CACHE").or_else(|| {
            folder("HF_HOME").or_else(|| hidden("huggingface")).map(|home| home.join("hub"))
        });
        let endpoint = env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Self {
            folders: folders.into_iter().flatten().collect(),
            cache,
            endpoint: endpoint.unwrap_or_else(|| "https://huggingface.co".to_string()),
            offline: value("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
            progress: false,
        }
    }

    /// Whether only files of this machine are used.
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline |= offline;
        self
    }

    /// Whether a download shows its progress, where standard error is a terminal.
    pub fn with_progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }

    /// The official file of a published model, downloaded if it is nowhere.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] lists the names that exist, [`ModelError::Weights`] says which
    /// file to put where.
    pub fn find(&self, name: &str) -> Result<PathBuf, ModelError> {
        let published = Published::named(name)?;
        match self.local(&published) {
            Some(path) => Ok(path),
            None => self.download(&published),
        }
    }

    /// A published model with its weights, on a device.
    ///
    /// `config` is that of the model, with whatever resolution. The weights come from the Burn
    /// record beside the official file. The record is made when there is none, when the file is
    /// another than the one it was made of, and when it is damaged; where it cannot be written, the
    /// official file is loaded.
    ///
    /// # Errors
    /// As [`find`](Self::find), and those of [`checkpoint::load`](crate::checkpoint::load).
    pub fn load(
        &self,
        name: &str,
        config: &ClipConfig,
        device: &Device,
    ) -> Result<Clip, ModelError> {
        let (source, own) = (self.find(name)?, ClipConfig::published(name)?);
        record::load(&source, &self.record(name, &source), &own, config, device)
    }

    /// The record of a file: beside it, or in the first folder if it lies in a cache that belongs
    /// to others.
    fn record(&self, name: &str, source: &Path) -> PathBuf {
        let file = format!("clip_cn_{}.bpk", name.to_lowercase());
        match &self.cache {
            Some(cache) if source.starts_with(cache) => {
                self.folders.first().unwrap_or(cache).join(file)
            }
            _ => source.with_file_name(file),
        }
    }

    fn local(&self, published: &Published) -> Option<PathBuf> {
        let in_folders = self.folders.iter().map(|folder| folder.join(&published.file));
        let in_cache = self.cache.iter().flat_map(|cache| {
            let repo = Cache::new(cache.clone()).repo(Repo::model(published.repository.into()));
            let files = [published.file.as_str()].into_iter().chain(TRANSFORMERS_FILES);
            files.filter_map(|file| repo.get(file)).collect::<Vec<_>>()
        });
        in_folders.chain(in_cache).find(|path| path.is_file())
    }

    fn download(&self, published: &Published) -> Result<PathBuf, ModelError> {
        let folder = self.folders.first().ok_or_else(|| ModelError::Config {
            name: published.name.to_string(),
            reason: "there is no home folder to look for weights in: set CN_CLIP_HOME".to_string(),
        })?;
        self.fetch(published, folder).map_err(|reason| ModelError::Weights {
            name: published.name,
            reason,
            source_url: format!("https://huggingface.co/{}", published.repository),
            path: folder.join(&published.file),
        })
    }

    #[cfg(feature = "download")]
    fn fetch(&self, published: &Published, folder: &Path) -> Result<PathBuf, String> {
        if self.offline {
            return Err("downloads are switched off".to_string());
        }
        let remote = download::Remote {
            endpoint: self.endpoint.trim_end_matches('/'),
            repository: published.repository,
            file: &published.file,
            progress: self.progress,
        };
        download::download(&remote, folder)
    }

    #[cfg(not(feature = "download"))]
    fn fetch(&self, _: &Published, _: &Path) -> Result<PathBuf, String> {
        Err("this build cannot download: compile with `--features download`".to_string())
    }
}

impl Published {
    fn named(name: &str) -> Result<Self, ModelError> {
        let found = REPOSITORIES.iter().find(|(known, _)| *known == name);
        let &(name, repository) = found.ok_or_else(|| ModelError::UnknownModel {
            kind: "published",
            name: name.to_string(),
            known: published_models().join(", "),
        })?;
        Ok(Self { name, repository, file: format!("clip_cn_{}.pt", name.to_lowercase()) })
    }
}

/// The official file of a published model, in `root` or in the other places of
/// [`Hub::from_env`], downloaded if it is nowhere.
///
/// # Errors
/// As [`Hub::find`].
pub fn find(name: &str, root: Option<&Path>) -> Result<PathBuf, ModelError> {
    Hub::from_env(root).find(name)
}
