//! What safetensors files and Burn records say beside their weights.

use std::collections::BTreeMap;

use super::state_dict::Progress;
use crate::ClipConfig;

const CONFIG: &str = "cn_clip.config";
const EPOCH: &str = "cn_clip.epoch";
const STEP: &str = "cn_clip.step";
const NAME: &str = "cn_clip.name";

/// Configuration and progress as entries of text.
pub(super) fn entries(
    progress: &Progress,
    config: Option<&ClipConfig>,
) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::from([
        (EPOCH.to_string(), progress.epoch.to_string()),
        (STEP.to_string(), progress.step.to_string()),
        (NAME.to_string(), progress.name.clone()),
    ]);
    // A configuration is numbers and names, which cannot fail.
    if let Some(Ok(config)) = config.map(serde_json::to_string) {
        entries.insert(CONFIG.to_string(), config);
    }
    entries
}

/// The same back; what is missing or unreadable is not there.
pub(super) fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> (Progress, Option<ClipConfig>) {
    let number = |key: &str| get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
    let progress = Progress {
        epoch: number(EPOCH),
        step: number(STEP),
        name: get(NAME).unwrap_or_default().to_string(),
        ..Progress::default()
    };
    let config: Option<ClipConfig> = get(CONFIG).and_then(|text| serde_json::from_str(text).ok());
    (progress, config.filter(|config| config.validate().is_ok()))
}
