//! The Burn record of a published file.

use std::{fs, io, path::Path, time::Duration};

use burn::tensor::Device;

use crate::{
    Clip, ClipConfig, ModelError,
    checkpoint::{self, Checkpoint, ConvertOptions, Format},
};

/// Some file systems count time in steps of two seconds.
const RESOLUTION: Duration = Duration::from_secs(2);

/// Loads `source`, a file of a model of the architecture `own`, into one of `config`: by way of its
/// record, which is made or replaced where need be.
pub(super) fn load(
    source: &Path,
    record: &Path,
    own: &ClipConfig,
    config: &ClipConfig,
    device: &Device,
) -> Result<Clip, ModelError> {
    let read =
        |path: &Path| checkpoint::load(Clip::init(config, device, 0), &Checkpoint::open(path)?);
    if is_of(record, source) {
        match read(record) {
            Ok(clip) => return Ok(clip),
            Err(error) => tracing::warn!("{error}: it is made again"),
        }
    }
    match make(source, record, own).and_then(|()| read(record)) {
        Ok(clip) => Ok(clip),
        Err(error) => {
            tracing::debug!("no Burn record of {}: {error}", source.display());
            read(source)
        }
    }
}

/// Whether a record was made of this state of the file: it has the time of the file.
fn is_of(record: &Path, source: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let (Some(record), Some(source)) = (time(record), time(source)) else { return false };
    let apart = record.duration_since(source).unwrap_or_else(|error| error.duration());
    apart < RESOLUTION
}

fn make(source: &Path, record: &Path, own: &ClipConfig) -> Result<(), ModelError> {
    let failed = |error: io::Error| ModelError::io(record)(error);
    if let Some(folder) = record.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let time = fs::metadata(source).and_then(|found| found.modified());
    let time = time.map_err(ModelError::io(source))?;
    let config = Some(own.clone());
    let options = ConvertOptions { config, force: true, ..ConvertOptions::new(Format::Burn) };
    checkpoint::convert(source, record, &options)?;
    let file = fs::File::options().write(true).open(record).map_err(failed)?;
    file.set_modified(time).map_err(failed)
}
