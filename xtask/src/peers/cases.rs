//! What is measured.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// This one.
    Ours,
    /// PyTorch, 32-bit floats.
    Torch,
    /// onnxruntime, 32-bit floats.
    Onnx,
    /// PyTorch with bf16 autocast: to be informed, not a measure.
    TorchBf16,
    /// This one with whole numbers, as fast as the processor can with some loss.
    OursInt16,
}

impl Contender {
    /// Its name in the figures and as a flag of the worker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Torch => "torch",
            Self::Onnx => "onnx",
            Self::TorchBf16 => "torch-bf16",
            Self::OursInt16 => "ours-int16",
        }
    }

    /// Whether it computes in less than 32-bit floats.
    pub fn is_reduced(self) -> bool {
        matches!(self, Self::TorchBf16 | Self::OursInt16)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A case.
pub struct Case {
    /// Name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Pictures, texts, pairs or runs of one measurement.
    pub items: usize,
    /// Who takes part, we first.
    pub contenders: Vec<Contender>,
    /// Whether one measurement takes many seconds.
    pub slow: bool,
    /// Runs whose outputs are compared.
    pub checks: usize,
    /// What they do.
    pub work: Work,
}

/// What a worker does, or a program from start to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Work {
    /// Un-normalised features of a batch.
    Encode {
        /// `image` or `text`.
        tower: Tower,
        /// Pictures or texts.
        batch: usize,
        /// Which token ids.
        texts: Texts,
    },
    /// Forward, backward and AdamW.
    Train {
        /// Pairs.
        batch: usize,
        /// Which token ids.
        texts: Texts,
        /// Share of patches that FLIP masks.
        mask_ratio: f64,
        /// Gradient checkpointing.
        checkpointing: bool,
        /// Share of values that dropout drops in the text tower.
        dropout: f64,
    },
    /// The picture files to pixels.
    Preprocess {
        /// Threads, or processes where threads exclude each other.
        threads: usize,
    },
    /// A checkpoint file to a model.
    Load,
    /// A program of its own.
    #[serde(skip)]
    Whole(Program),
}

/// One of the towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tower {
    /// Pictures.
    Image,
    /// Texts.
    Text,
}

/// Token ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Texts {
    /// 52 tokens, all used.
    Full,
    /// Captions, padded to 52 as tokenizers give them.
    Natural,
    /// Captions, cut to the longest by hand.
    Trimmed,
}

/// What is done from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Features of all picture files.
    Extract,
    /// Similarity of a picture and two texts.
    Start,
}

impl Work {
    /// The work whose outputs tell that the contenders do the same; `None` where there are none to
    /// compare. Masks and dropout are drawn by each for itself.
    pub fn checked(&self) -> Option<Self> {
        match self {
            Self::Train { mask_ratio, .. } if *mask_ratio > 0.0 => None,
            Self::Train { batch, texts, checkpointing, .. } => Some(Self::Train {
                batch: *batch,
                texts: *texts,
                mask_ratio: 0.0,
                checkpointing: *checkpointing,
                dropout: 0.0,
            }),
            Self::Load | Self::Whole(_) => None,
            Self::Encode { .. } | Self::Preprocess { .. } => Some(self.clone()),
        }
    }
}

/// All of them, with those of these that are reduced.
pub fn all(reduced: &[Contender]) -> Vec<Case> {
    use Contender::{Onnx, Ours, Torch};
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let case = |name, about, items, contenders: &[Contender], work| {
        let contenders = contenders.to_vec();
        let slow = matches!(work, Work::Whole(Program::Extract) | Work::Train { .. });
        let checks = if matches!(work, Work::Train { .. }) { 2 } else { 1 };
        Case { name, about, items, contenders, slow, checks, work }
    };
    let image = |batch| Work::Encode { tower: Tower::Image, batch, texts: Texts::Full };
    let text = |texts| Work::Encode { tower: Tower::Text, batch: 32, texts };
    let train = |mask_ratio, checkpointing| Work::Train {
        batch: 8,
        texts: Texts::Full,
        mask_ratio,
        checkpointing,
        dropout: 0.1,
    };
    let fp32: &[_] = &[Ours, Torch, Onnx];
    let encode = &[fp32, reduced].concat();
    let torch = &[Ours, Torch];
    vec![
        case("image-b1", "encode 1 picture", 1, encode, image(1)),
        case("image-b8", "encode 8 pictures", 8, encode, image(8)),
        case("image-b32", "encode 32 pictures", 32, encode, image(32)),
        case("text-b32", "encode 32 texts of 52 tokens", 32, encode, text(Texts::Full)),
        case("text-b32-natural", "encode 32 captions padded to 52 tokens", 32, encode, {
            text(Texts::Natural)
        }),
        case("text-b32-trimmed", "the same cut to the longest for the peers", 32, encode, {
            text(Texts::Trimmed)
        }),
        case("train-b8", "training step of 8 pairs", 8, torch, train(0.0, false)),
        case("train-b8-checkpointed", "the same, checkpointed", 8, torch, train(0.0, true)),
        case("train-b8-mask", "the same, FLIP 0.5", 8, torch, train(0.5, false)),
        case("preprocess-1", "200 JPEG to pixels, one thread", 200, torch, {
            Work::Preprocess { threads: 1 }
        }),
        case("preprocess-all", "200 JPEG to pixels, all threads", 200, torch, {
            Work::Preprocess { threads }
        }),
        case("extract-200", "features of 200 JPEG, whole program", 200, fp32, {
            Work::Whole(Program::Extract)
        }),
        case("load", "checkpoint file to model", 1, fp32, Work::Load),
        case("start", "start to first similarity, whole program", 1, fp32, {
            Work::Whole(Program::Start)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_differ_and_we_come_first() {
        let cases = all(&[Contender::TorchBf16]);
        let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| case.contenders[0] == Contender::Ours));
    }

    #[test]
    fn work_is_told_as_json() {
        for case in all(&[]) {
            if !matches!(case.work, Work::Whole(_)) {
                let text = serde_json::to_string(&case.work).unwrap();
                assert_eq!(serde_json::from_str::<Work>(&text).unwrap(), case.work, "{text}");
            }
        }
    }

    #[test]
    fn checks_leave_chance_out() {
        let checked = all(&[]).iter().filter_map(|case| case.work.checked()).collect::<Vec<_>>();
        assert_eq!(checked.len(), 10);
        let chance = |work: &Work| match work {
            Work::Train { mask_ratio, dropout, .. } => mask_ratio + dropout,
            _ => 0.0,
        };
        assert!(checked.iter().all(|work| chance(work) == 0.0));
    }
}
