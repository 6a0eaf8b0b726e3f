//! Weights that a run begins with, and those of its teacher.

use std::path::Path;

use burn::tensor::Device;
use cn_clip_model::{
    Clip, ClipConfig, VisionConfig,
    checkpoint::{self, Checkpoint},
    hub,
};
use cn_clip_train::{TrainError, distill::ImageTeacher};

use super::args::TrainArgs;
use crate::cli::note;

/// Initial weights by the seed, then by `--clip-weight-path` and `--bert-weight-path`. A run that
/// is resumed replaces them.
pub fn initial(args: &TrainArgs, config: &ClipConfig, device: &Device) -> Result<Clip, TrainError> {
    let mut model = Clip::init(config, device, args.seed);
    if let Some(path) = &args.clip_weight_path {
        let image = |key: &str| key.starts_with("visual.") || key == "logit_scale";
        model = part(model, path, image)?;
    }
    if let Some(path) = &args.bert_weight_path {
        model = part(model, path, |key| key.starts_with("bert."))?;
    }
    Ok(model)
}

fn part(model: Clip, path: &Path, chosen: impl Fn(&str) -> bool) -> Result<Clip, TrainError> {
    let file = Checkpoint::open(path)?;
    if let Some((old, new)) = checkpoint::resized_grid(&model, &file) {
        note(&format!(
            "Resizing position embedding grid-size from ({old}, {old}) to ({new}, {new})"
        ));
    }
    Ok(checkpoint::load_part(model, &file, chosen)?)
}

/// The teacher, for pictures of the student's resolution.
pub fn teacher(
    args: &TrainArgs,
    student: &ClipConfig,
    device: &Device,
) -> Result<Option<ImageTeacher>, TrainError> {
    let Some(name) = &args.teacher_model else { return Ok(None) };
    let path = match &args.teacher_checkpoint {
        Some(path) => path.clone(),
        None => hub::find(name, None)?,
    };
    let mut vision = VisionConfig::load(name)?;
    let (own, patch) = (student.vision.image_resolution, vision.patch_size.unwrap_or(32));
    if !own.is_multiple_of(patch) {
        return Err(TrainError::Config(format!(
            "--teacher-model {name} cuts pictures into patches of {patch} pixels, which does not \
             divide the resolution {own} of the image tower: choose another teacher"
        )));
    }
    vision.image_resolution = own;
    // The text tower of a teacher is not used, and so its weights are never made.
    let config = ClipConfig { vision, text: student.text.clone() };
    let model = Clip::init(&config, &device.clone().inner(), 0);
    let model = part(model, &path, |key| key.starts_with("visual."))?;
    Ok(Some(ImageTeacher::new(&model, args.kd_loss_weight)))
}
