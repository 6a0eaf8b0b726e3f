//! Names of the forms and types of checkpoints.

use std::{fmt, path::Path, str::FromStr};

/// Forms of a checkpoint that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A record of Burn (`.bpk`), as `Module::save_file` writes it.
    Burn,
    /// A safetensors file with official keys.
    Safetensors,
    /// A folder of `ChineseCLIPModel` for the `transformers` library.
    HuggingFace,
    /// The `.pt` form of the Python program.
    Official,
}

impl Format {
    const ALL: [(&'static str, Self); 4] = [
        ("burn", Self::Burn),
        ("safetensors", Self::Safetensors),
        ("huggingface", Self::HuggingFace),
        ("official", Self::Official),
    ];

    /// The form that the extension of a file stands for; a folder is one of Hugging Face.
    pub fn of_path(path: &Path) -> Option<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy());
        match extension.as_deref() {
            Some("bpk") => Some(Self::Burn),
            Some("safetensors") => Some(Self::Safetensors),
            Some("pt" | "pth" | "bin") => Some(Self::Official),
            _ => path.is_dir().then_some(Self::HuggingFace),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, format)| format == self).map_or("", |(name, _)| name);
        formatter.pad(name)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Self::ALL.iter().find(|(name, _)| *name == text) {
            Some((_, format)) => Ok(*format),
            None => Err("expected burn, safetensors, huggingface or official".to_string()),
        }
    }
}

/// Type of the weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    Fp32,
    /// IEEE half.
    Fp16,
    /// Brain float.
    Bf16,
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp32" => Ok(Self::Fp32),
            "fp16" => Ok(Self::Fp16),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected fp32, fp16 or bf16".to_string()),
        }
    }
}
