//! A page about a run, made of its `metrics.jsonl`.

use std::{fs, path::PathBuf};

use anyhow::Context;
use cn_clip_eval::report::{Curve, Plot, Report, Table};
use cn_clip_train::{TrainConfig, metrics::METRICS};
use serde_json::Value;

/// Axes of the page: their name, and kind and name of each curve's numbers.
const PLOTS: [(&str, &[(&str, &str)]); 8] = [
    ("Loss", &[("train", "loss"), ("valid", "loss"), ("train", "distillation_loss")]),
    (
        "Accuracy within the batch",
        &[
            ("train", "image_accuracy"),
            ("train", "text_accuracy"),
            ("valid", "image_accuracy"),
            ("valid", "text_accuracy"),
        ],
    ),
    (
        "Recall over the validation split, in %",
        &[
            ("valid", "text_to_image_r1"),
            ("valid", "text_to_image_r5"),
            ("valid", "text_to_image_r10"),
            ("valid", "image_to_text_r1"),
            ("valid", "image_to_text_r5"),
            ("valid", "image_to_text_r10"),
        ],
    ),
    ("Learning rate", &[("train", "lr")]),
    ("Logit scale", &[("train", "logit_scale")]),
    ("Norm of the gradient", &[("train", "gradient_norm")]),
    ("Pairs per second", &[("train", "pairs_per_second")]),
    ("Memory of the process, in MiB", &[("train", "memory_mib")]),
];

/// Writes `report.html` into the directory of a run; returns its path, if the run keeps files.
pub fn write(config: &TrainConfig) -> anyhow::Result<Option<PathBuf>> {
    let Some(directory) = config.directory() else { return Ok(None) };
    let path = directory.join(METRICS);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let page = directory.join("report.html");
    report(config, &lines).write(&page).with_context(|| page.display().to_string())?;
    Ok(Some(page))
}

fn report(config: &TrainConfig, lines: &[Value]) -> Report {
    let points = |kind: &str, name: &str| -> Vec<(u64, f32)> {
        let of_kind = lines.iter().filter(|line| line["kind"] == kind);
        of_kind
            .filter_map(|line| Some((line["step"].as_u64()?, line[name].as_f64()? as f32)))
            .collect()
    };
    let plot = |(axis, numbers): &(&str, &[(&str, &str)])| {
        let curve = |(kind, name): &(&str, &str)| Curve {
            name: format!("{kind} {}", name.replace('_', " ")),
            points: points(kind, name),
        };
        let curves: Vec<Curve> =
            numbers.iter().map(curve).filter(|curve| !curve.points.is_empty()).collect();
        (!curves.is_empty()).then(|| Plot { axis: axis.to_string(), curves })
    };
    let fact = |name: &str, value: &dyn ToString| (name.to_string(), value.to_string());
    let steps = lines.iter().filter_map(|line| line["step"].as_u64()).max().unwrap_or(0);
    Report {
        title: format!("Training run {}", config.name),
        facts: vec![
            fact("Image tower", &config.vision_model),
            fact("Text tower", &config.text_model),
            fact("Data", &config.train_data),
            fact("Device", &config.device),
            fact("Steps", &steps),
        ],
        tables: last_validation(lines),
        plots: PLOTS.iter().filter_map(plot).collect(),
        searches: Vec::new(),
    }
}

/// The numbers of the last validation, in percent.
fn last_validation(lines: &[Value]) -> Vec<Table> {
    let Some(last) = lines.iter().rev().find(|line| line["kind"] == "valid") else {
        return Vec::new();
    };
    let step = &last["step"];
    let row = |name: &str, keys: &[&str], factor: f64| -> Option<(String, Vec<f64>)> {
        let number = |key: &&str| Some(factor * last[*key].as_f64()?);
        Some((name.to_string(), keys.iter().map(number).collect::<Option<_>>()?))
    };
    let table = |caption: String, columns: &[&str], rows: [Option<(String, Vec<f64>)>; 2]| Table {
        caption,
        columns: columns.iter().map(|name| name.to_string()).collect(),
        rows: rows.into_iter().flatten().collect(),
    };
    let accuracy = [
        row("image to text", &["image_accuracy"], 100.0),
        row("text to image", &["text_accuracy"], 100.0),
    ];
    let recall = [
        row("text to image", &["text_to_image_r1", "text_to_image_r5", "text_to_image_r10"], 1.0),
        row("image to text", &["image_to_text_r1", "image_to_text_r5", "image_to_text_r10"], 1.0),
    ];
    let tables = [
        table(format!("Validation at step {step}"), &["in-batch accuracy in %"], accuracy),
        table("Recall over the split in %".to_string(), &["R@1", "R@5", "R@10"], recall),
    ];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}
