//! A state dict whose tensors still lie in the file, from any format that is read.

use std::path::Path;

use super::{optimizer::OptimizerState, pytorch, safetensors, tensor::LazyTensor};
use crate::{ModelError, checkpoint::tensor::Source};

/// What a checkpoint file holds, tensors unread.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Name for messages: the path.
    pub name: String,
    /// Weights under official keys, without the `module.` prefix, in the file's order.
    pub state_dict: Vec<(String, LazyTensor)>,
    /// Where training stood.
    pub progress: Progress,
    /// Optimizer state, in training checkpoints.
    pub optimizer: Option<OptimizerState>,
}

/// Where training stood when a checkpoint was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Epoch the checkpoint was written in, counted from 1; 0 if unknown.
    pub epoch: u64,
    /// Optimizer steps done.
    pub step: u64,
    /// Name of the run.
    pub name: String,
    /// Pairs of `epoch` already trained on, over all ranks, when it was written before the epoch's
    /// end; `None` at the end of an epoch and in files of the Python program.
    pub epoch_pairs: Option<u64>,
    /// Loss scale of training in fp16, and the steps since it changed.
    pub loss_scale: Option<(u64, u64)>,
}

impl Checkpoint {
    /// Opens a checkpoint; the format is told by the content.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let source = Source::open(path.to_path_buf())?;
        let head = source.read(0, source.length.min(16) as usize)?;
        let mut checkpoint = match head.as_slice() {
            [b'P', b'K', 3, 4, ..] => pytorch::open(&source)?,
            [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::open(&source)?,
            [0x80, 2..=5, ..] => {
                return Err(source.damaged(
                    "written by torch before 1.6: load and save it again with a newer torch",
                ));
            }
            _ => {
                return Err(source.damaged(
                    "not a checkpoint: expected a PyTorch file (.pt) or a safetensors file",
                ));
            }
        };
        for (key, _) in &mut checkpoint.state_dict {
            if let Some(stripped) = key.strip_prefix("module.") {
                *key = stripped.to_string();
            }
        }
        // A BERT alone, and the names of its norms in files of TensorFlow's time.
        let alone = !checkpoint.state_dict.iter().any(|(key, _)| key.starts_with("bert."))
            && checkpoint.get("embeddings.word_embeddings.weight").is_some();
        for (key, _) in &mut checkpoint.state_dict {
            if alone && (key.starts_with("embeddings.") || key.starts_with("encoder.")) {
                *key = format!("bert.{key}");
            }
            if key.starts_with("bert.") {
                *key = key
                    .replace("LayerNorm.gamma", "LayerNorm.weight")
                    .replace("LayerNorm.beta", "LayerNorm.bias");
            }
        }
        checkpoint.state_dict.retain(|(key, _)| {
            !key.starts_with("bert.pooler") && key != "bert.embeddings.position_ids"
        });
        Ok(checkpoint)
    }

    /// The tensor under a key.
    pub fn get(&self, key: &str) -> Option<&LazyTensor> {
        self.state_dict.iter().find(|(name, _)| name == key).map(|(_, tensor)| tensor)
    }
}
