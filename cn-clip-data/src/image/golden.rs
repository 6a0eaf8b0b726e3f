//! The reference's pixels for a file of every Pillow mode (`tests/fixtures/preprocess`), Pillow's
//! for further file forms (`preprocess_formats`), and damaged forms of all of them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::{ImageError, ImageTransform, Mode, Picture, PixelTransform};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(FIXTURES).join("preprocess").join(name)
}

/// `file@resolution[.suffix]` split up.
fn parse_key(key: &str) -> (&str, usize) {
    let (file, rest) = key.split_once('@').unwrap();
    (file, rest.split('.').next().unwrap().parse().unwrap())
}

#[test]
fn modes_and_sizes_are_those_of_pillow() {
    let json = fs::read_to_string(fixture("images.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let images = json["images"].as_object().unwrap();
    assert_eq!(images.len(), 21);
    for (file, expected) in images {
        let picture = Picture::decode(&fs::read(fixture(file)).unwrap()).unwrap();
        let mode = match picture.mode() {
            Mode::Bit => "1",
            Mode::Palette => "P",
            Mode::Gray => "L",
            Mode::GrayAlpha => "LA",
            Mode::Gray16 => "I;16",
            Mode::Rgb => "RGB",
            Mode::Rgba => "RGBA",
            Mode::Cmyk => "CMYK",
        };
        assert_eq!(mode, expected["mode"], "{file}");
        assert_eq!(picture.width(), expected["size"][0], "{file}");
        assert_eq!(picture.height(), expected["size"][1], "{file}");
    }
}

#[test]
fn resized_rgb_is_that_of_pillow() {
    let data = fs::read(fixture("expected_u8.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let mut compared = BTreeSet::new();
    for (key, expected) in tensors.iter().filter(|(key, _)| key.ends_with(".u8_hwc")) {
        let (file, resolution) = parse_key(key);
        let picture = Picture::decode(&fs::read(fixture(file)).unwrap()).unwrap();
        let actual = ImageTransform::new(resolution).rgb_u8(&picture).unwrap();
        let (max, mean) = difference(&actual, expected.data());
        assert!(max == 0, "{key}: max {max}, mean {mean}");
        compared.insert(file.to_string());
    }
    assert_eq!(compared.len(), 21);
}

#[test]
fn further_forms_are_those_of_pillow() {
    let directory = PathBuf::from(FIXTURES).join("preprocess_formats");
    let data = fs::read(directory.join("expected_u8.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    assert_eq!(tensors.len(), 34);
    for (file, expected) in tensors.iter() {
        let picture = Picture::decode(&fs::read(directory.join(file)).unwrap()).unwrap();
        let actual = ImageTransform::new(32).rgb_u8(&picture).unwrap();
        let (max, mean) = difference(&actual, expected.data());
        assert!(max == 0, "{file}: max {max}, mean {mean}");
    }
}

/// All pictures of both fixture directories.
fn all_pictures() -> Vec<(String, Vec<u8>)> {
    let directories = ["preprocess", "preprocess_formats"];
    let files = directories.iter().flat_map(|d| fs::read_dir(format!("{FIXTURES}/{d}")).unwrap());
    let mut pictures = Vec::new();
    for path in files.map(|entry| entry.unwrap().path()) {
        let extension = path.extension().unwrap().to_str().unwrap();
        if ["png", "jpg", "gif", "bmp", "webp"].contains(&extension) {
            pictures.push((path.display().to_string(), fs::read(path).unwrap()));
        }
    }
    assert_eq!(pictures.len(), 22 + 34);
    pictures
}

#[test]
fn cut_off_pictures_are_errors() {
    for (file, bytes) in all_pictures() {
        // Of an animation the first frame may be whole in half a file.
        let part = if file.contains("animated") { 4 } else { 2 };
        let error = Picture::decode(&bytes[..bytes.len() / part]).unwrap_err();
        let expected = matches!(error, ImageError::Damaged { .. });
        assert!(expected, "{file}: {error}");
        for length in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
            let _ = Picture::decode(&bytes[..length]);
        }
    }
}

#[test]
fn overwritten_pictures_do_not_panic() {
    for (_, bytes) in all_pictures() {
        for position in (0..bytes.len()).step_by(1 + bytes.len() / 128) {
            let mut bytes = bytes.clone();
            bytes[position] = !bytes[position];
            if let Ok(picture) = Picture::decode(&bytes) {
                let (width, height) = (picture.width(), picture.height());
                assert_eq!(picture.into_rgb().pixels.len(), 3 * width * height);
            }
        }
    }
}

#[test]
fn decoded_jpeg_is_that_of_libjpeg() {
    let data = fs::read(fixture("expected_u8.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let expected = tensors.tensor("03_scene.jpg.decoded_rgb_u8").unwrap();
    let picture = Picture::decode(&fs::read(fixture("03_scene.jpg")).unwrap()).unwrap();
    let (max, mean) = difference(&picture.into_rgb().pixels, expected.data());
    assert!(max == 0, "max {max}, mean {mean}");
}

#[test]
fn decoded_files_have_the_mean_of_pillow() {
    let data = fs::read(fixture("expected_u8.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let mut compared = 0;
    for (key, expected) in tensors.iter() {
        let Some(file) = key.strip_suffix(".decoded_rgb_u8_mean") else { continue };
        let rgb = Picture::decode(&fs::read(fixture(file)).unwrap()).unwrap().into_rgb();
        for (channel, bytes) in expected.data().chunks_exact(8).enumerate() {
            let expected = f64::from_le_bytes(bytes.try_into().unwrap());
            let samples = rgb.pixels.iter().skip(channel).step_by(3);
            let sum: f64 = samples.map(|&sample| f64::from(sample)).sum();
            let mean = sum / (rgb.width * rgb.height) as f64;
            assert!((mean - expected).abs() < 1e-9, "{key}: {mean}, not {expected}");
        }
        compared += 1;
    }
    assert_eq!(compared, 21);
}

#[test]
fn normalised_pixels_are_those_of_torchvision() {
    let data = fs::read(fixture("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let mut compared = BTreeSet::new();
    for (key, expected) in tensors.iter() {
        let (file, resolution) = parse_key(key);
        assert_eq!(expected.shape(), [3, resolution, resolution], "{key}");
        let mut actual = vec![0.0; 3 * resolution * resolution];
        let bytes = fs::read(fixture(file)).unwrap();
        ImageTransform::new(resolution).apply(&bytes, 0, &mut actual).unwrap();
        let half = expected.dtype() == Dtype::F16;
        let values: Vec<f32> = match half {
            true => expected.data().chunks_exact(2).map(read_f16).collect(),
            false => expected.data().chunks_exact(4).map(read_f32).collect(),
        };
        assert_eq!(values.len(), actual.len(), "{key}");
        let rounding = if half { 1e-3 } else { 0.0 };
        let differences = values.iter().zip(&actual).map(|(e, a)| (e - a).abs());
        let max = differences.fold(0.0, f32::max);
        assert!(max <= rounding, "{key}: max {max}");
        compared.insert(file.to_string());
    }
    assert_eq!(compared.len(), 21);
}

fn read_f32(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap())
}

fn read_f16(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32()
}

/// Largest and mean absolute difference.
fn difference(actual: &[u8], expected: &[u8]) -> (u8, f64) {
    assert_eq!(actual.len(), expected.len());
    let differences: Vec<u8> = actual.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
    let sum: u64 = differences.iter().map(|&difference| u64::from(difference)).sum();
    (*differences.iter().max().unwrap(), sum as f64 / actual.len() as f64)
}

#[test]
fn passes_are_done_in_the_order_of_pillow() {
    let file = format!("{FIXTURES}/preprocess_formats/pass_order.json");
    let rows: Vec<(String, usize, usize, usize, usize, u32)> =
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    for (mode, width, height, to_width, to_height, expected) in rows {
        let (mode, channels) = if mode == "L" { (Mode::Gray, 1) } else { (Mode::Rgb, 3) };
        let sample = |i: usize| (i * i * 31 + i * 7 + (i >> 3) * 13) as u8;
        let samples = (0..width * height * channels).map(sample).collect();
        let picture = Picture::new(mode, width, height, samples).unwrap();
        let resized = picture.resize(to_width, to_height).into_rgb().pixels;
        let step = if channels == 1 { 3 } else { 1 };
        let bytes: Vec<u8> = resized.into_iter().step_by(step).collect();
        let got = crc32fast::hash(&bytes);
        assert_eq!(got, expected, "{mode:?} {width}x{height} to {to_width}x{to_height}");
    }
}
