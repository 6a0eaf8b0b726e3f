//! All figures of a classification, in JSON.

use std::path::Path;

use cn_clip_data::atomic::write_atomically;
use serde::Serialize;

use super::{Accuracy, Confusion, ZeroShotError};

/// Figures of a data set.
#[derive(Debug, Serialize)]
pub struct Metrics<'a> {
    dataset: &'a str,
    /// Name of the set of templates.
    templates: &'a str,
    images: usize,
    top1: f64,
    top5: f64,
    mean_per_class: f64,
    classes: Vec<Class<'a>>,
    /// True class, predicted class and number of pictures, where there are any.
    confusion: Vec<[usize; 3]>,
}

#[derive(Debug, Serialize)]
struct Class<'a> {
    label: &'a str,
    images: usize,
    correct: usize,
    accuracy: Option<f64>,
}

impl<'a> Metrics<'a> {
    /// Of the classes whose names are `labels`.
    pub fn new(
        dataset: &'a str,
        templates: &'a str,
        labels: &'a [String],
        accuracy: &Accuracy,
        confusion: &Confusion,
    ) -> Self {
        let class = |(label, class): (&'a String, &super::ClassAccuracy)| Class {
            label,
            images: class.images,
            correct: class.correct,
            accuracy: class.share(),
        };
        Self {
            dataset,
            templates,
            images: accuracy.per_class.iter().map(|class| class.images).sum(),
            top1: accuracy.top1,
            top5: accuracy.top5,
            mean_per_class: accuracy.mean_per_class(),
            classes: labels.iter().zip(&accuracy.per_class).map(class).collect(),
            confusion: confusion.entries().collect(),
        }
    }

    /// Writes them.
    ///
    /// # Errors
    /// [`ZeroShotError::Write`] if the folder is missing or the disk full.
    pub fn write(&self, path: &Path) -> Result<(), ZeroShotError> {
        let failed = |source| ZeroShotError::Write { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        write_atomically(path, &text).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_class_by_class() {
        let (probabilities, targets) = ([0.9, 0.1, 0.0, 0.8, 0.2, 0.0, 0.1, 0.9, 0.0], [0, 1, 1]);
        let labels = ["a", "b", "c"].map(str::to_owned);
        let accuracy = Accuracy::new(&probabilities, 3, &targets).unwrap();
        let confusion = Confusion::new(&probabilities, 3, &targets);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.json");
        let metrics = Metrics::new("pets", "openai", &labels, &accuracy, &confusion);
        metrics.write(&path).unwrap();
        let found: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "dataset": "pets", "templates": "openai", "images": 3,
            "top1": 2.0 / 3.0, "top5": 1.0, "mean_per_class": 0.75,
            "classes": [
                {"label": "a", "images": 1, "correct": 1, "accuracy": 1.0},
                {"label": "b", "images": 2, "correct": 1, "accuracy": 0.5},
                {"label": "c", "images": 0, "correct": 0, "accuracy": null},
            ],
            "confusion": [[0, 0, 1], [1, 0, 1], [1, 1, 1]],
        });
        assert_eq!(found, expected);
        let error = metrics.write(&folder.path().join("none/m.json"));
        assert!(matches!(error, Err(ZeroShotError::Write { .. })));
    }
}
