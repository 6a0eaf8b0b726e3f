//! Several sources one after the other.

use std::sync::Arc;

use crate::{error::DataError, record::Pair, source::PairSource};

/// The pairs of several sources in order. Ids stay as they are, also where parts share some: a
/// picture is looked up in the part its pair comes from.
pub struct Concat {
    parts: Vec<Arc<dyn PairSource>>,
    /// Index after the last pair of each part.
    ends: Vec<usize>,
}

impl Concat {
    /// Joins sources.
    pub fn new(parts: Vec<Arc<dyn PairSource>>) -> Self {
        let ends = parts
            .iter()
            .scan(0, |end, part| {
                *end += part.len();
                Some(*end)
            })
            .collect();
        Self { parts, ends }
    }

    /// The part of a pair and the pair's index there.
    fn find(&self, index: usize) -> Result<(&dyn PairSource, usize), DataError> {
        let number = self.part(index);
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).unwrap_or(&0);
        let part = self.parts.get(number).ok_or_else(|| {
            DataError::Config(format!("pair {index} of {} does not exist", self.len()))
        })?;
        Ok((part.as_ref(), index - start))
    }
}

impl PairSource for Concat {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn num_images(&self) -> usize {
        self.parts.iter().map(|part| part.num_images()).sum()
    }

    fn pair(&self, index: usize) -> Result<Pair, DataError> {
        let (part, index) = self.find(index)?;
        part.pair(index)
    }

    fn image(&self, index: usize, pair: &Pair) -> Result<Vec<u8>, DataError> {
        let (part, index) = self.find(index)?;
        part.image(index, pair)
    }

    fn part(&self, index: usize) -> usize {
        self.ends.partition_point(|end| *end <= index)
    }
}
