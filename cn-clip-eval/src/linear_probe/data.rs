//! Features with classes, and their division into splits.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::ProbeError;

/// Share of each class's training pictures that is held out where there is no validation split.
const HELD_OUT: f64 = 0.2;

/// Features and the names of their classes.
#[derive(Clone, Debug)]
pub struct LabelledFeatures {
    /// Values of a feature, at least 1.
    pub dim: usize,
    /// `[pictures, dim]`.
    pub values: Vec<f32>,
    /// One per picture.
    pub labels: Vec<String>,
}

/// Features and the numbers of their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Values of a feature.
    pub dim: usize,
    /// `[pictures, dim]`.
    pub values: Vec<f32>,
    /// One per picture.
    pub targets: Vec<usize>,
}

impl Split {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Some of the pictures.
    pub(super) fn choose(&self, rows: &[usize]) -> Self {
        let row = |&row: &usize| &self.values[row * self.dim..(row + 1) * self.dim];
        Self {
            dim: self.dim,
            values: rows.iter().flat_map(row).copied().collect(),
            targets: rows.iter().map(|&row| self.targets[row]).collect(),
        }
    }

    /// These pictures and others.
    pub(super) fn join(&self, other: &Self) -> Self {
        Self {
            dim: self.dim,
            values: [&self.values[..], &other.values].concat(),
            targets: [&self.targets[..], &other.targets].concat(),
        }
    }

    /// Pictures of each class, in an order that `seed` and `stream` decide.
    pub(super) fn shuffled(&self, classes: usize, seed: u64, stream: u64) -> Vec<Vec<usize>> {
        let mut rows = vec![Vec::new(); classes];
        for (row, &target) in self.targets.iter().enumerate() {
            rows[target].push(row);
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        rows.iter_mut().for_each(|rows| rows.shuffle(&mut random));
        rows
    }
}

/// What a probe is trained, tuned and tested on.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// Training split.
    pub train: Split,
    /// Validation split, if there is one.
    pub validation: Option<Split>,
    /// Test split.
    pub test: Split,
}

impl Splits {
    /// Numbers the classes of the training split.
    ///
    /// # Errors
    /// [`ProbeError::TooFewClasses`]; [`ProbeError::Dimension`] and [`ProbeError::UnknownClass`] for
    /// a split that does not fit the training split.
    pub fn new(
        train: LabelledFeatures,
        validation: Option<LabelledFeatures>,
        test: LabelledFeatures,
    ) -> Result<Self, ProbeError> {
        let names: BTreeSet<&String> = train.labels.iter().collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        if classes.len() < 2 {
            return Err(ProbeError::TooFewClasses(classes.len()));
        }
        let expected = train.dim;
        let number = |split: LabelledFeatures, name: &'static str| {
            let LabelledFeatures { dim, values, labels } = split;
            if dim != expected {
                return Err(ProbeError::Dimension { split: name, found: dim, expected });
            }
            let target = |label: &String| {
                let unknown = |_| ProbeError::UnknownClass { split: name, class: label.clone() };
                classes.binary_search(label).map_err(unknown)
            };
            let targets: Result<Vec<usize>, _> = labels.iter().map(target).collect();
            Ok(Split { dim, values, targets: targets? })
        };
        let train = number(train, "training")?;
        let validation = validation.map(|split| number(split, "validation")).transpose()?;
        let test = number(test, "test")?;
        Ok(Self { classes, train, validation, test })
    }

    /// What to train and to tune on: the two splits, or where there is no validation split, a fifth
    /// of the pictures of each class for the second, chosen by `seed`; a class of one picture keeps
    /// it.
    ///
    /// # Errors
    /// [`ProbeError::NothingToHoldOut`] if every class has one picture.
    pub(super) fn tuning(&self, seed: u64) -> Result<(Split, Split), ProbeError> {
        if let Some(validation) = &self.validation {
            return Ok((self.train.clone(), validation.clone()));
        }
        let (mut kept, mut held) = (Vec::new(), Vec::new());
        for rows in self.train.shuffled(self.classes.len(), seed, 0) {
            let count = ((rows.len() as f64 * HELD_OUT).round() as usize).max(1);
            let count = count.min(rows.len().saturating_sub(1));
            held.extend_from_slice(&rows[..count]);
            kept.extend_from_slice(&rows[count..]);
        }
        if held.is_empty() {
            return Err(ProbeError::NothingToHoldOut);
        }
        kept.sort_unstable();
        held.sort_unstable();
        Ok((self.train.choose(&kept), self.train.choose(&held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(labels: &[&str]) -> LabelledFeatures {
        LabelledFeatures {
            dim: 1,
            values: (0..labels.len()).map(|row| row as f32).collect(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
        }
    }

    #[test]
    fn classes_are_those_of_the_training_split() {
        let splits = Splits::new(labelled(&["b", "a", "b"]), None, labelled(&["a", "a"])).unwrap();
        assert_eq!(splits.classes, ["a", "b"]);
        assert_eq!((splits.train.targets, splits.test.targets), (vec![1, 0, 1], vec![0, 0]));
        let error =
            |train, validation, test| Splits::new(train, validation, test).unwrap_err().to_string();
        let two = || labelled(&["a", "b"]);
        assert!(error(labelled(&["a", "a"]), None, two()).contains("has 1 classes"));
        let found = error(two(), None, labelled(&["a", "c"]));
        assert_eq!(found, "class \"c\" of the test split has no picture in the training split");
        let found = error(two(), Some(labelled(&["d"])), two());
        assert!(found.starts_with("class \"d\" of the validation split"), "{found}");
        let wide = LabelledFeatures { dim: 2, values: vec![1.0; 4], labels: two().labels };
        assert!(error(two(), None, wide).contains("have 2 values, those of the training split 1"));
    }

    #[test]
    fn a_fifth_of_each_class_is_held_out() {
        let labels: Vec<&str> = (0..41)
            .map(|row| {
                if row < 20 {
                    "a"
                } else if row < 40 {
                    "b"
                } else {
                    "c"
                }
            })
            .collect();
        let splits = Splits::new(labelled(&labels), None, labelled(&["a"])).unwrap();
        let (train, held) = splits.tuning(5).unwrap();
        assert_eq!((train.len(), held.len(), held.is_empty()), (33, 8, false));
        for class in 0..2 {
            assert_eq!(held.targets.iter().filter(|&&target| target == class).count(), 4);
        }
        let mut all = [train.values.clone(), held.values.clone()].concat();
        all.sort_by(f32::total_cmp);
        assert_eq!(all, splits.train.values);
        assert_eq!(splits.tuning(5).unwrap(), (train, held.clone()));
        assert_ne!(splits.tuning(6).unwrap().1, held);

        let singles = Splits::new(labelled(&["a", "b"]), None, labelled(&["a"])).unwrap();
        assert!(matches!(singles.tuning(0), Err(ProbeError::NothingToHoldOut)));
    }
}
