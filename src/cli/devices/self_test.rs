//! Rate and error of one device on a small image tower.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use cn_clip_model::{Clip, ClipConfig, DeviceSpec, Pass, Precision, device};

use super::Report;

/// Most time for the passes that are measured.
const LIMIT: Duration = Duration::from_secs(1);
const BATCH: usize = 8;
const RESOLUTION: usize = 112;

/// Tests a device.
pub fn run(spec: DeviceSpec) -> anyhow::Result<Report> {
    let device = spec.open()?;
    let (name, memory_bytes) = device::identity(&device);
    let expected = features(&model(&DeviceSpec::CPU.open()?)?, &pixels())?;
    let (model, pixels) = (model(&device)?, pixels());
    let start = Instant::now();
    let found = features(&model, &pixels)?;
    let first_pass = start.elapsed();

    let start = Instant::now();
    let mut passes = 0;
    while passes == 0 || start.elapsed() < LIMIT {
        features(&model, &pixels)?;
        passes += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report {
        device: spec.to_string(),
        name,
        memory_bytes,
        dtypes: Precision::supported_names(&device),
        pictures_per_second: Some((passes * BATCH) as f64 / seconds),
        first_pass_seconds: Some(first_pass.as_secs_f64()),
        error: Some(error(&found, &expected)),
        failure: None,
    })
}

/// A ViT of four layers, 192 wide, with 50 tokens; the text tower is as small as can be.
fn model(device: &Device) -> anyhow::Result<Clip> {
    let config: ClipConfig = serde_json::from_value(serde_json::json!({
        "embed_dim": 64,
        "image_resolution": RESOLUTION,
        "vision_layers": 4,
        "vision_width": 192,
        "vision_patch_size": 16,
        "vocab_size": 8,
        "text_attention_probs_dropout_prob": 0.0,
        "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.0,
        "text_hidden_size": 8,
        "text_initializer_range": 0.02,
        "text_intermediate_size": 8,
        "text_max_position_embeddings": 8,
        "text_num_attention_heads": 1,
        "text_num_hidden_layers": 1,
        "text_type_vocab_size": 2,
    }))?;
    Ok(Clip::init(&config, device, 1))
}

/// Smooth waves, another for each picture.
fn pixels() -> Vec<f32> {
    let count = 3 * RESOLUTION * RESOLUTION;
    let value =
        |index: usize| ((index % count) as f32 * (0.01 + (index / count) as f32 * 0.003)).sin();
    (0..BATCH * count).map(value).collect()
}

fn features(model: &Clip, pixels: &[f32]) -> anyhow::Result<Vec<f32>> {
    let data = TensorData::new(pixels.to_vec(), [BATCH, 3, RESOLUTION, RESOLUTION]);
    let pixels = Tensor::from_data(data, &model.device());
    Ok(model.encode_image(pixels, None, Pass::Eval).into_data().try_into_vec()?)
}

/// Largest difference over largest expected value; infinite where something is not a number.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(0.0, |max: f64, value| match value.is_nan() {
            true => f64::INFINITY,
            false => max.max(f64::from(value.abs())),
        })
    };
    let scale = largest(&mut expected.iter().copied());
    largest(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_agrees_with_itself() {
        let report = run(DeviceSpec::CPU).unwrap();
        assert_eq!((report.error, report.failure), (Some(0.0), None));
        assert!(report.dtypes.contains(&"fp32".to_string()));
        assert!(report.pictures_per_second.unwrap() > 0.0);
    }

    #[test]
    fn errors_are_relative_and_no_number_is_no_agreement() {
        assert!((error(&[1.0, -4.0], &[1.0, -5.0]) - 0.2).abs() < 1e-9);
        assert_eq!(error(&[f32::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
    }
}
