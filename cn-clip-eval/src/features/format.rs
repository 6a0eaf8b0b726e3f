//! Telling the forms of feature files apart.

use std::{fmt, fs::File, io::Read, path::Path, str::FromStr};

use super::FeatureError;

/// A form of feature files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FeatureFormat {
    /// The reference's JSON lines.
    #[default]
    Jsonl,
    /// A numpy array and a file of ids.
    Npy,
    /// Tensors `features` and `ids`.
    Safetensors,
    /// An id column and a list of floats.
    Parquet,
}

impl FeatureFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Jsonl, Self::Npy, Self::Safetensors, Self::Parquet];

    /// The usual ending of a file name, which is also the name of the form.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
        }
    }

    /// The form that the ending of a file name tells.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        Self::ALL.into_iter().find(|format| format.extension().eq_ignore_ascii_case(extension))
    }

    /// The form of a file: that of its name, else that of its first bytes.
    pub(super) fn of_file(path: &Path) -> Result<Self, FeatureError> {
        if let Some(format) = Self::of_name(path) {
            return Ok(format);
        }
        let mut file = File::open(path).map_err(FeatureError::read(path))?;
        // Reading from a pipe would take the bytes away.
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Ok(Self::Jsonl);
        }
        let mut head = Vec::new();
        file.by_ref().take(9).read_to_end(&mut head).map_err(FeatureError::read(path))?;
        Ok(match head.as_slice() {
            [b'P', b'A', b'R', b'1', ..] => Self::Parquet,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Self::Npy,
            // The length of a header below 16 MiB and its first byte.
            [_, _, _, 0, 0, 0, 0, 0, b'{'] => Self::Safetensors,
            _ => Self::Jsonl,
        })
    }
}

impl fmt::Display for FeatureFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

impl FromStr for FeatureFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.extension() == name);
        found.ok_or_else(|| "a form is one of jsonl, npy, safetensors and parquet".to_owned())
    }
}
