//! What the demonstration shows at its end: a table, and a page.

use std::{fmt, time::Duration};

use cn_clip_eval::{
    recall::RecallReport,
    report::{Curve, Plot, Report, Table},
};
use cn_clip_train::TrainConfig;

use super::score::Scores;

/// A finished demonstration.
pub struct Summary {
    /// What the test pictures gave.
    pub scores: Scores,
    /// Loss of training and of validation.
    pub curves: [Curve; 2],
    /// How it was trained.
    pub training: TrainConfig,
    /// Time until the model was trained.
    pub trained: Duration,
    /// Time of everything.
    pub total: Duration,
}

impl Summary {
    /// Rows of R@1, R@5 and R@10 in percent, and of chance.
    fn recalls(&self) -> [(&'static str, [f64; 3]); 3] {
        let retrieval = &self.scores.retrieval;
        let row = |report: &RecallReport| [report.r1, report.r5, report.r10];
        let pictures = retrieval.image_to_text.queries as f64;
        [
            ("text to image", row(&retrieval.text_to_image)),
            ("image to text", row(&retrieval.image_to_text)),
            ("chance", [1.0, 5.0, 10.0].map(|k| 100.0 * k / pictures)),
        ]
    }

    /// Zero-shot accuracy and chance, in percent.
    fn accuracies(&self) -> [(&'static str, f64); 2] {
        let classes = self.scores.classes as f64;
        [("zero-shot", 100.0 * self.scores.accuracy.top1), ("chance", 100.0 / classes)]
    }

    fn test_set(&self) -> String {
        let pictures = self.scores.retrieval.image_to_text.queries;
        format!("{pictures} pictures by a designer not seen in training")
    }

    /// The page.
    pub fn page(&self) -> Report {
        let fact = |name: &str, value: String| (name.to_string(), value);
        let steps = self.curves[0].points.last().map_or(0, |(step, _)| *step);
        let columns = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Report {
            title: "cn-clip demo: emoji by their Chinese names".to_string(),
            facts: vec![
                fact("Test set", self.test_set()),
                fact("Steps", format!("{steps} of {} pairs", self.training.batch_size)),
                fact("Time to train", format!("{:.0} s", self.trained.as_secs_f64())),
                fact("Device", self.training.device.clone()),
            ],
            tables: vec![
                Table {
                    caption: "Retrieval, recall in %".to_string(),
                    columns: columns(&["R@1", "R@5", "R@10"]),
                    rows: self
                        .recalls()
                        .into_iter()
                        .map(|(name, values)| (name.to_string(), values.to_vec()))
                        .collect(),
                },
                Table {
                    caption: format!("Classification, {} classes", self.scores.classes),
                    columns: columns(&["accuracy in %"]),
                    rows: self
                        .accuracies()
                        .into_iter()
                        .map(|(name, value)| (name.to_string(), vec![value]))
                        .collect(),
                },
            ],
            plots: vec![Plot {
                axis: "Contrastive loss".to_string(),
                curves: self.curves.to_vec(),
            }],
            searches: self.scores.searches.clone(),
        }
    }
}

impl fmt::Display for Summary {
    /// The figures as a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.test_set())?;
        writeln!(f, "{:<14} {:>7} {:>7} {:>7}", "recall in %", "R@1", "R@5", "R@10")?;
        for (name, [r1, r5, r10]) in self.recalls() {
            writeln!(f, "{name:<14} {r1:>7.2} {r5:>7.2} {r10:>7.2}")?;
        }
        writeln!(f, "\nclassification into {} classes, accuracy in %", self.scores.classes)?;
        for (name, accuracy) in self.accuracies() {
            writeln!(f, "{name:<14} {accuracy:>7.2}")?;
        }
        let seconds = |time: Duration| time.as_secs_f64().round();
        let (trained, total) = (seconds(self.trained), seconds(self.total));
        writeln!(f, "\n{trained} s to train, {total} s in all")
    }
}
