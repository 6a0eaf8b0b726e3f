//! A state dict whose tensors still lie in the file, from any format that is read.

use std::path::Path;

use burn_pack::MAGIC_NUMBER;

use super::{
    burnpack, huggingface, names, optimizer::OptimizerState, pytorch, safetensors, source::Source,
    tensor::LazyTensor,
};
use crate::{ClipConfig, ModelError};

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
    /// Architecture, where the file says it.
    pub config: Option<ClipConfig>,
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
    /// Opens a checkpoint of any form: a file of `torch.save` (official, of flash attention, of
    /// OpenAI, a TorchScript archive of theirs, a BERT), a safetensors file, a record of Burn, or
    /// a folder of Hugging Face's `ChineseCLIPModel`. The form is told by the content, never by the
    /// name; keys become the official ones.
    ///
    /// # Errors
    /// When the file is of no such form or damaged. A pickle that refers to anything but data is
    /// refused by the name of what it refers to.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let mut checkpoint = match path.is_dir() {
            true => huggingface::open_folder(path)?,
            false => Self::open_raw(path)?,
        };
        for (key, tensor) in &checkpoint.state_dict {
            tensor.check().map_err(|error| match error {
                ModelError::Format { path, reason } => {
                    ModelError::Format { path, reason: format!("`{key}`: {reason}") }
                }
                error => error,
            })?;
        }
        checkpoint.state_dict = names::normalise(checkpoint.state_dict);
        Ok(checkpoint)
    }

    /// A file with its own keys.
    pub(super) fn open_raw(path: &Path) -> Result<Self, ModelError> {
        let source = Source::open(path.to_path_buf())?;
        let head = source.read(0, source.length.min(16) as usize)?;
        match head.as_slice() {
            [b'P', b'K', 3, 4, ..] => pytorch::open(&source),
            [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::open(&source),
            [a, b, c, d, ..] if u32::from_le_bytes([*a, *b, *c, *d]) == MAGIC_NUMBER => {
                burnpack::open(&source)
            }
            [0x80, 2..=5, ..] => Err(source
                .damaged("written by torch before 1.6: load and save it again with a newer torch")),
            _ => Err(source.damaged(
                "not a checkpoint: expected a PyTorch file (.pt), a safetensors file, a Burn \
                 record (.bpk) or a folder of a Hugging Face model",
            )),
        }
    }

    /// The tensor under a key.
    pub fn get(&self, key: &str) -> Option<&LazyTensor> {
        self.state_dict.iter().find(|(name, _)| name == key).map(|(_, tensor)| tensor)
    }

    /// Whether it holds both towers, and not one alone.
    pub fn is_whole(&self) -> bool {
        let has = |prefix: &str| self.state_dict.iter().any(|(key, _)| key.starts_with(prefix));
        has("visual.") && has("bert.")
    }
}
