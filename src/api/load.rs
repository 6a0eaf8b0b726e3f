use std::path::{Path, PathBuf};

use burn::tensor::Device;
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{self, Checkpoint},
    config::published_models,
    hub::Hub,
};

use super::{Error, Model};

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Folder of published weights, searched before `CN_CLIP_HOME`, `~/.cache/clip` and the cache
    /// of the Hugging Face hub; also where downloads go.
    pub download_root: Option<PathBuf>,
    /// The architecture; `None` for that of the published model, or the one that the shapes in the
    /// file tell. With another `image_resolution` than that of the weights, the positional
    /// embedding is resized.
    pub config: Option<ClipConfig>,
    /// Never download.
    pub offline: bool,
    /// Show the progress of a download, where standard error is a terminal.
    pub progress: bool,
}

/// Names of the published models, for [`load_from_name`].
///
/// ```
/// assert!(cn_clip::available_models().contains(&"ViT-B-16"));
/// ```
pub fn available_models() -> Vec<&'static str> {
    published_models()
}

/// Loads a published model by name, or any checkpoint by its path: an official `.pt`, safetensors,
/// a Burn record, or a folder of the Hugging Face form.
///
/// Published weights that are not on this machine are downloaded (feature `download`), see
/// [`Hub`].
///
/// ```
/// use cn_clip::{LoadOptions, load_from_name, model::DeviceSpec};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceSpec::CPU.open()?;
/// // Or "ViT-B-16".
/// let path = "tests/fixtures/tiny.safetensors";
/// let model = load_from_name(path, &device, &LoadOptions::default())?;
/// assert_eq!(model.config().vision.image_resolution, 32);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::UnknownName`], or [`Error::Model`] with the file that is missing, damaged or does not
/// fit.
pub fn load_from_name(name: &str, device: &Device, options: &LoadOptions) -> Result<Model, Error> {
    let (clip, config) = load_clip(name, &device.clone().inner(), options)?;
    Ok(Model::new(clip, config))
}

/// Loads any checkpoint by its path, whatever it is called; otherwise as [`load_from_name`].
///
/// # Errors
/// [`Error::Model`] with the file that is missing, damaged or does not fit.
pub fn load_from_path(
    path: impl AsRef<Path>,
    device: &Device,
    options: &LoadOptions,
) -> Result<Model, Error> {
    let (clip, config) = from_path(path.as_ref(), &device.clone().inner(), options)?;
    Ok(Model::new(clip, config))
}

/// As [`load_from_name`], as a Burn module: on an autodiff device it can be trained.
///
/// # Errors
/// Those of [`load_from_name`].
pub fn load_clip(
    name: &str,
    device: &Device,
    options: &LoadOptions,
) -> Result<(Clip, ClipConfig), Error> {
    let known = published_models();
    match (known.contains(&name), Path::new(name).exists()) {
        (true, _) => from_hub(name, device, options),
        (false, true) => from_path(Path::new(name), device, options),
        (false, false) => {
            Err(Error::UnknownName { name: name.to_string(), known: known.join(", ") })
        }
    }
}

fn from_hub(
    name: &str,
    device: &Device,
    options: &LoadOptions,
) -> Result<(Clip, ClipConfig), Error> {
    let config = options.config.clone().map_or_else(|| ClipConfig::published(name), Ok)?;
    let hub = Hub::from_env(options.download_root.as_deref())
        .with_offline(options.offline)
        .with_progress(options.progress);
    Ok((hub.load(name, &config, device)?, config))
}

fn from_path(
    path: &Path,
    device: &Device,
    options: &LoadOptions,
) -> Result<(Clip, ClipConfig), Error> {
    let file = Checkpoint::open(path)?;
    let config = options.config.clone().map_or_else(|| checkpoint::detect_config(&file), Ok)?;
    let clip = checkpoint::load(Clip::init(&config, device, 0), &file)?;
    Ok((clip, config))
}
