//! The examples, on tiny weights.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../examples/backends.rs"]
mod backends;
#[path = "support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../examples/image_search.rs"]
mod image_search;
#[allow(dead_code)]
#[path = "../examples/linear_probe.rs"]
mod linear_probe;
#[allow(dead_code)]
#[path = "../examples/own_training_loop.rs"]
mod own_training_loop;
#[allow(dead_code)]
#[path = "../examples/zero_shot.rs"]
mod zero_shot;

use std::{fs, path::Path};

use cn_clip::model::device::compiled;
use golden::fixture;

fn tiny() -> String {
    fixture("tiny.safetensors").display().to_string()
}

fn picture(name: &str) -> String {
    fixture("preprocess").join(name).display().to_string()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// Pictures of a colour, each with other noise.
fn paint(folder: &Path, colour: [u8; 3], count: u32, seed: u32) {
    fs::create_dir_all(folder).unwrap();
    let mut noise = seed;
    for index in 0..count {
        let image = image::RgbImage::from_fn(32, 32, |_, _| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb(colour.map(|value| value.saturating_add((noise >> 26) as u8)))
        });
        image.save(folder.join(format!("{index}.png"))).unwrap();
    }
}

#[test]
fn zero_shot_prints_probabilities() {
    let labels = strings(&["猫", "狗", "鸟"]);
    let probabilities = zero_shot::run(&tiny(), &picture("03_scene.jpg"), &labels).unwrap();
    assert_eq!(probabilities.len(), 3);
    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    assert!(zero_shot::run(&tiny(), "none.jpg", &labels).is_err());
}

#[test]
fn image_search_finds_pictures_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["01_gradient_rgb.png", "03_scene.jpg", "08_wide.png", "21_bmp.bmp"] {
        fs::copy(picture(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("notes.txt"), "no picture").unwrap();
    let found = image_search::run(&tiny(), dir.path(), &strings(&["海边的日落", "猫"])).unwrap();
    assert_eq!(found.len(), 2);
    for best in found {
        assert_eq!(best.len(), 3);
        assert!(best.iter().all(|path| path.starts_with(dir.path())), "{best:?}");
    }
}

#[test]
fn the_linear_probe_tells_colours_apart() {
    let dir = tempfile::tempdir().unwrap();
    for (split, count, seed) in [("train", 8, 1), ("test", 4, 2)] {
        let folder = dir.path().join(split);
        paint(&folder.join("blue"), [0, 0, 190], count, seed);
        paint(&folder.join("red"), [190, 0, 0], count, seed + 10);
    }
    let (train, test) = (dir.path().join("train"), dir.path().join("test"));
    assert!(linear_probe::run(&tiny(), &train, &test).unwrap() > 0.9);
}

#[test]
fn the_own_loop_learns() {
    let dir = tempfile::tempdir().unwrap();
    for (name, colour) in [("红", [190, 0, 0]), ("绿", [0, 190, 0]), ("蓝", [0, 0, 190])] {
        paint(dir.path(), colour, 1, 7);
        fs::rename(dir.path().join("0.png"), dir.path().join(format!("{name}.png"))).unwrap();
    }
    let losses = own_training_loop::run(&tiny(), dir.path(), 12).unwrap();
    assert_eq!(losses.len(), 12);
    assert!(losses[11] < 0.7 * losses[0], "{losses:?}");
}

#[test]
fn backends_agree() {
    let differences = backends::run(&tiny(), &picture("03_scene.jpg"), "猫").unwrap();
    assert!(!differences.is_empty() && differences.len() <= compiled().len());
    assert_eq!(differences[0], 0.0);
    assert!(differences.iter().all(|difference| *difference < 1e-4), "{differences:?}");
}
