//! The prediction file of the ELEVATER benchmark.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::ZeroShotError;
use crate::python_json;
use cn_clip_data::atomic::AtomicFile;

/// What the benchmark wants to know; numbers of parameters are those of the whole model and of its
/// image tower.
#[derive(Clone, Copy, Debug)]
pub struct ElevaterReport<'a> {
    /// Name of the vision model; the file says `CN-CLIP-<name>`.
    pub vision_model: &'a str,
    /// Name of the data set, also of the file.
    pub dataset: &'a str,
    /// Parameters of the model.
    pub num_params: usize,
    /// Parameters of the image tower.
    pub num_visual_params: usize,
    /// Number of classes.
    pub classes: usize,
    /// `[images, classes]` row by row, finite; written with six decimals.
    pub probabilities: &'a [f32],
}

#[derive(Serialize)]
struct File<'a> {
    model_name: String,
    dataset_name: &'a str,
    num_trainable_params: usize,
    num_params: usize,
    num_visual_params: usize,
    num_backbone_params: usize,
    n_shot: usize,
    rnd_seeds: [usize; 1],
    predictions: [Rows<'a>; 1],
}

struct Rows<'a> {
    classes: usize,
    values: &'a [f32],
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(None)?;
        for row in self.values.chunks(self.classes.max(1)) {
            rows.serialize_element(
                &row.iter().map(|&value| six_decimals(value)).collect::<Vec<_>>(),
            )?;
        }
        rows.end()
    }
}

/// Python's `round(x, 6)` of the widened value: exact decimal rounding, ties to even.
fn six_decimals(value: f32) -> f64 {
    let value = f64::from(value);
    format!("{value:.6}").parse().unwrap_or(value)
}

impl ElevaterReport<'_> {
    /// Writes `<save_dir>/<dataset>.json`, the reference's file, and returns its path.
    ///
    /// # Errors
    /// [`ZeroShotError::Write`] if the folder is missing or the disk full, and
    /// [`ZeroShotError::DatasetName`] if the name holds a path; no half file is left.
    pub fn write(&self, save_dir: &Path) -> Result<PathBuf, ZeroShotError> {
        if Path::new(self.dataset).file_name() != Some(self.dataset.as_ref()) {
            return Err(ZeroShotError::DatasetName { name: self.dataset.to_owned() });
        }
        if let Some(at) = self.probabilities.iter().position(|value| !value.is_finite()) {
            let what = format!("the prediction of picture {}", at / self.classes.max(1));
            return Err(ZeroShotError::NotFinite { what });
        }
        let path = save_dir.join(format!("{}.json", self.dataset));
        let file = File {
            model_name: format!("CN-CLIP-{}", self.vision_model),
            dataset_name: self.dataset,
            num_trainable_params: 0,
            num_params: self.num_params,
            num_visual_params: self.num_visual_params,
            num_backbone_params: self.num_params,
            n_shot: 0,
            rnd_seeds: [123],
            predictions: [Rows { classes: self.classes, values: self.probabilities }],
        };
        let failed = |source| ZeroShotError::Write { path: path.clone(), source };
        let mut output = AtomicFile::create(&path).map_err(failed)?;
        python_json::write(&mut output, &file).map_err(|error| failed(error.into()))?;
        output.finish().map_err(failed)?;
        Ok(path)
    }
}

/// Reads the list that says which picture stands at each place of the report (`--index`).
///
/// # Errors
/// [`ZeroShotError::Index`] if it is no JSON list of numbers below `images`.
pub fn read_index(path: &Path, images: usize) -> Result<Vec<usize>, ZeroShotError> {
    let text =
        fs::read(path).map_err(|source| ZeroShotError::Read { path: path.to_owned(), source })?;
    let bad = |reason| ZeroShotError::Index { path: path.to_owned(), reason };
    let index: Vec<usize> =
        serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    match index.iter().find(|&&image| image >= images) {
        Some(image) => Err(bad(format!("picture {image} is not among {images} pictures"))),
        None => Ok(index),
    }
}

/// Rows of `probabilities` (`[images, classes]`) in the order of `index`, whose numbers are below
/// the number of images.
pub fn reorder(probabilities: &[f32], classes: usize, index: &[usize]) -> Vec<f32> {
    let row = |&image: &usize| &probabilities[image * classes..(image + 1) * classes];
    index.iter().flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Accuracy;
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/zeroshot").join(name)
    }

    fn golden(dataset: &str) -> (serde_json::Value, Vec<f32>) {
        let text = fs::read_to_string(fixture(&format!("{dataset}.json"))).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows = golden["predictions"][0].as_array().unwrap();
        let values = rows.iter().flat_map(|row| row.as_array().unwrap());
        let values = values.map(|value| value.as_f64().unwrap() as f32).collect();
        (golden, values)
    }

    fn report<'a>(dataset: &'a str, probabilities: &'a [f32]) -> ElevaterReport<'a> {
        let (vision_model, num_params, num_visual_params) = ("ViT-B-16", 204_209, 32_768);
        ElevaterReport {
            vision_model,
            dataset,
            num_params,
            num_visual_params,
            classes: 3,
            probabilities,
        }
    }

    #[test]
    fn reports_are_the_references_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        for dataset in ["custom", "food-101", "eurosat_clip"] {
            let (golden, probabilities) = golden(dataset);
            assert_eq!(golden["num_params"], 204_209);
            let path = report(dataset, &probabilities).write(folder.path()).unwrap();
            assert_eq!(path, folder.path().join(format!("{dataset}.json")));
            let expected = fs::read_to_string(fixture(&format!("{dataset}.json"))).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), expected);
        }
    }

    #[test]
    fn golden_predictions_have_the_golden_accuracy() {
        let targets = [0, 0, 0, 1, 1, 1, 2, 2, 2];
        for dataset in ["custom", "food-101"] {
            let accuracy = Accuracy::new(&golden(dataset).1, 3, &targets).unwrap();
            assert_eq!((accuracy.top1, accuracy.top5), (5.0 / 9.0, 1.0));
        }
        let index = read_index(&fixture("index.json"), 9).unwrap();
        assert_eq!(index, [8, 0, 3, 1, 2, 7, 4, 5, 6]);
        let moved: Vec<usize> = index.iter().map(|&image| targets[image]).collect();
        let accuracy = Accuracy::new(&golden("eurosat_clip").1, 3, &moved).unwrap();
        assert_eq!(accuracy.top1, 5.0 / 9.0);
    }

    #[test]
    fn rows_move_by_the_index() {
        let values: Vec<f32> = (0..6).map(|value| value as f32).collect();
        assert_eq!(reorder(&values, 2, &[2, 0, 2]), [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
    }

    #[test]
    fn rounding_is_pythons() {
        for (value, expected) in [
            (0.007_812_5, 0.007_812),
            (0.023_437_5, 0.023_438),
            (1e-7, 0.0),
            (1.4e-6, 1e-6),
            (0.999_999_9, 1.0),
            (1.0, 1.0),
        ] {
            assert_eq!(six_decimals(value), expected, "{value}");
        }
    }

    #[test]
    fn bad_indices_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        for bad in ["[0, 3]", "[-1]", "[0.5]", "{}", "", "[0"] {
            fs::write(&path, bad).unwrap();
            let error = read_index(&path, 3).unwrap_err();
            assert!(matches!(error, ZeroShotError::Index { .. }), "{bad}: {error}");
        }
        assert!(matches!(read_index(Path::new("none"), 3), Err(ZeroShotError::Read { .. })));
    }

    #[test]
    fn reports_that_cannot_be_written_are_errors() {
        let values = [0.5, 0.25, 0.25];
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", "/"] {
            let error = report(name, &values).write(folder.path());
            assert!(matches!(error, Err(ZeroShotError::DatasetName { .. })), "{name}");
        }
        let error = report("x", &values).write(&folder.path().join("none"));
        assert!(matches!(error, Err(ZeroShotError::Write { .. })));
        let error = report("x", &[0.5, f32::NAN, 0.5]).write(folder.path());
        assert!(matches!(error, Err(ZeroShotError::NotFinite { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
