//! The measured rates as a table.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use cn_clip_model::ClipConfig;
use serde::Deserialize;

use crate::{flops, peers::median};

/// Dense bf16 peaks of graphics processors by a part of their name, in TFLOP/s, the longer name
/// first (the vendor's data sheets).
const PEAKS: [(&str, f64); 8] = [
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H200", 989.4),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.2),
    ("L4", 121.0),
];

/// What `gpu_bench.py` writes.
#[derive(Debug, Deserialize)]
pub struct Results {
    device: String,
    context_length: usize,
    torch: String,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    model: String,
    /// The configuration, in the official keys.
    config: ClipConfig,
    kind: CaseKind,
    batch: usize,
    mask_ratio: f64,
    checkpointing: bool,
    /// By contender: `ours`, `torch`, `compiled`.
    measured: BTreeMap<String, Measured>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CaseKind {
    EncodeImage,
    EncodeText,
    TrainStep,
}

/// What a contender has taken, or why it failed.
#[derive(Debug, Deserialize)]
struct Measured {
    #[serde(default)]
    seconds: Vec<f64>,
    memory_mib: Option<f64>,
    /// Which attention PyTorch has used.
    attention: Option<String>,
    error: Option<String>,
}

impl Results {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// A table in Markdown. `peak` is that of the device in TFLOP/s, if its name does not tell.
    pub fn table(&self, peak: Option<f64>) -> anyhow::Result<String> {
        let known = PEAKS.iter().find(|(name, _)| self.device.contains(name));
        let peak = peak.or(known.map(|(_, peak)| *peak));
        if self.cases.is_empty() {
            bail!("the results hold no case");
        }
        let of = peak.map_or("unknown: give --peak-tflops".to_string(), |peak| {
            format!("{peak} TFLOP/s in dense bf16")
        });
        let mut text = format!(
            "{}, peak {of}; PyTorch {}; texts of {} tokens\n\n\
             | case | contender | per second | MFU | MiB | to the best PyTorch |\n\
             |---|---|---|---|---|---|\n",
            self.device, self.torch, self.context_length
        );
        for case in &self.cases {
            for (contender, measured) in &case.measured {
                text.push_str(&case.line(contender, measured, self.context_length, peak));
            }
        }
        Ok(text)
    }
}

impl Case {
    fn name(&self) -> String {
        let kind = match self.kind {
            CaseKind::EncodeImage => "encode pictures",
            CaseKind::EncodeText => "encode texts",
            CaseKind::TrainStep => "train",
        };
        let mask = if self.mask_ratio > 0.0 {
            format!(", mask {}", self.mask_ratio)
        } else {
            String::new()
        };
        let checkpointing = if self.checkpointing { ", checkpointing" } else { "" };
        format!("{} {kind}, batch {}{mask}{checkpointing}", self.model, self.batch)
    }

    fn rate(&self, measured: &Measured) -> Option<f64> {
        let seconds = median(&measured.seconds);
        (seconds > 0.0).then(|| self.batch as f64 / seconds)
    }

    /// Operations for one picture, text or pair.
    fn operations(&self, tokens: usize) -> Option<f64> {
        let config = &self.config;
        match self.kind {
            CaseKind::EncodeImage => flops::image(&config.vision, 0.0),
            CaseKind::EncodeText => {
                Some(flops::text(&config.text, config.vision.embed_dim, tokens))
            }
            CaseKind::TrainStep => flops::train(config, self.mask_ratio, tokens),
        }
    }

    fn line(
        &self,
        contender: &str,
        measured: &Measured,
        tokens: usize,
        peak: Option<f64>,
    ) -> String {
        let name = self.name();
        let attention = measured.attention.as_deref();
        let contender = attention.map_or(contender.to_string(), |a| format!("{contender}, {a}"));
        let Some(rate) = self.rate(measured) else {
            let reason = measured.error.as_deref().unwrap_or("no result");
            return format!("| {name} | {contender} | {reason} | - | - | - |\n");
        };
        let utilisation = self.operations(tokens).zip(peak);
        let utilisation = utilisation
            .map_or("-".to_string(), |(work, peak)| format!("{:.1} %", rate * work / peak / 1e10));
        let memory = measured.memory_mib.map_or("-".to_string(), |mib| format!("{mib:.0}"));
        let peers = self.measured.iter().filter(|(name, _)| *name != "ours");
        let best = peers.filter_map(|(_, peer)| self.rate(peer)).fold(0.0, f64::max);
        let ratio = if best > 0.0 { format!("{:.2}x", rate / best) } else { "-".to_string() };
        format!("| {name} | {contender} | {rate:.1} | {utilisation} | {memory} | {ratio} |\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(device: &str) -> Results {
        let config = serde_json::to_value(ClipConfig::published("ViT-B-16").unwrap()).unwrap();
        let case = |kind: &str, mask_ratio: f64, ours: serde_json::Value| {
            serde_json::json!({
                "model": "ViT-B-16", "config": config, "kind": kind, "batch": 256,
                "mask_ratio": mask_ratio, "checkpointing": mask_ratio > 0.0,
                "measured": {
                    "ours": ours,
                    "torch": {"seconds": [0.4, 0.2, 0.3], "memory_mib": 9000.0, "attention": "SDPA"},
                    "compiled": {"seconds": [0.25], "memory_mib": null},
                },
            })
        };
        let recorded = serde_json::json!({
            "device": device, "context_length": 52, "torch": "2.4.1",
            "cases": [
                case("encode-image", 0.0, serde_json::json!({"seconds": [0.2], "memory_mib": 8192.4})),
                case("train-step", 0.5, serde_json::json!({"error": "out of memory"})),
            ],
        });
        serde_json::from_value(recorded).unwrap()
    }

    #[test]
    fn recorded_results_make_the_table() {
        let table = results("NVIDIA H100 80GB HBM3").table(None).unwrap();
        // 256 / 0.2 = 1280 pictures/s of 35.13 GFLOP: 44.96 TFLOP/s of 989.4, and 1024/s of the
        // best PyTorch.
        for line in [
            "NVIDIA H100 80GB HBM3, peak 989.4 TFLOP/s in dense bf16; PyTorch 2.4.1",
            "| ViT-B-16 encode pictures, batch 256 | ours | 1280.0 | 4.5 % | 8192 | 1.25x |",
            "| ViT-B-16 encode pictures, batch 256 | torch, SDPA | 853.3 | 3.0 % | 9000 | 0.83x |",
            "| ViT-B-16 encode pictures, batch 256 | compiled | 1024.0 | 3.6 % | - | 1.00x |",
            "mask 0.5, checkpointing | ours | out of memory | - | - | - |",
        ] {
            assert!(table.contains(line), "{line} not in\n{table}");
        }
    }

    #[test]
    fn an_unknown_device_has_a_utilisation_only_by_its_peak() {
        let results = results("A new card");
        assert!(results.table(None).unwrap().contains("| 1280.0 | - | 8192 |"));
        assert!(results.table(Some(100.0)).unwrap().contains("| 1280.0 | 45.0 % | 8192 |"));
    }

    #[test]
    fn results_that_cannot_be_read_name_their_file() {
        let error = Results::read(Path::new("no-such.json")).unwrap_err().to_string();
        assert!(error.contains("no-such.json"), "{error}");
        let empty = r#"{"device": "x", "context_length": 52, "torch": "2", "cases": []}"#;
        let empty: Results = serde_json::from_str(empty).unwrap();
        assert!(empty.table(None).is_err());
    }
}
