//! Probes on a few pictures of each class.

use serde::Serialize;

use super::{Probe, ProbeError, Splits, Sweep};

/// Pictures of each class to choose the L2 strength on, at most.
const TUNING: usize = 4;

/// Probes with so many pictures of each class.
#[derive(Clone, Debug, Serialize)]
pub struct FewShot {
    /// Pictures of each class.
    pub shots: usize,
    /// Mean top-1 accuracy of the trials on the test split.
    pub top1: f64,
    /// Its standard deviation; 0 for one trial.
    pub deviation: f64,
    /// Mean of the accuracies averaged over classes.
    pub mean_per_class: f64,
    /// Each trial.
    pub trials: Vec<Trial>,
}

/// One draw of pictures.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The probe.
    #[serde(flatten)]
    pub probe: Probe,
    /// Rows of the training split that it was trained on.
    #[serde(skip)]
    pub rows: Vec<usize>,
}

/// Trains `trials` probes, each on `shots` pictures of each class drawn by the sweep's seed and the
/// number of the trial, and scores the test split.
///
/// The strength is chosen on as many other pictures of each class, four at most: of the validation
/// split if there is one, else of the training split.
///
/// # Errors
/// [`ProbeError::TooFewPictures`] for a class that has not so many pictures.
pub fn few_shot(
    splits: &Splits,
    shots: usize,
    trials: usize,
    sweep: &Sweep,
) -> Result<FewShot, ProbeError> {
    let draws = (1..=trials.max(1) as u64).map(|trial| one(splits, shots, trial, sweep));
    let trials: Vec<Trial> = draws.collect::<Result<_, _>>()?;
    let mean = |figure: fn(&Probe) -> f64| {
        trials.iter().map(|trial| figure(&trial.probe)).sum::<f64>() / trials.len() as f64
    };
    let top1 = mean(|probe| probe.top1);
    let squares = trials.iter().map(|trial| (trial.probe.top1 - top1).powi(2)).sum::<f64>();
    let deviation = (squares / (trials.len() as f64 - 1.0).max(1.0)).sqrt();
    let mean_per_class = mean(|probe| probe.mean_per_class);
    Ok(FewShot { shots, top1, deviation, mean_per_class, trials })
}

fn one(splits: &Splits, shots: usize, trial: u64, sweep: &Sweep) -> Result<Trial, ProbeError> {
    let classes = splits.classes.len();
    let tuning = shots.min(TUNING);
    let (mut rows, mut held) = (Vec::new(), Vec::new());
    let needed = if splits.validation.is_some() { shots } else { shots + tuning };
    let drawn = splits.train.shuffled(classes, sweep.seed, trial);
    for (class, found) in splits.classes.iter().zip(&drawn) {
        if found.len() < needed {
            let (class, found) = (class.clone(), found.len());
            return Err(ProbeError::TooFewPictures { class, found, needed, shots });
        }
        rows.extend_from_slice(&found[..shots]);
        held.extend_from_slice(&found[shots..needed]);
    }
    let train = splits.train.choose(&rows);
    let held = match &splits.validation {
        None => splits.train.choose(&held),
        Some(validation) => {
            let drawn = validation.shuffled(classes, sweep.seed, trial);
            let first = drawn.iter().flat_map(|rows| rows.iter().take(tuning));
            validation.choose(&first.copied().collect::<Vec<_>>())
        }
    };
    let probe = sweep.run(classes, &train, &held, &train, &splits.test)?;
    Ok(Trial { probe, rows })
}

#[cfg(test)]
mod tests {
    use super::super::LabelledFeatures;
    use super::*;

    fn corners(rows: usize, offset: usize) -> LabelledFeatures {
        let noise = |i: usize| ((i * 7919 + offset * 104_729) % 2003) as f32 / 2003.0 - 0.5;
        let values =
            (0..rows * 3).map(|i| f32::from(u8::from(i / 3 % 3 == i % 3)) + noise(i) * 1.4);
        let labels = (0..rows).map(|row| format!("{}", row % 3));
        LabelledFeatures { dim: 3, values: values.collect(), labels: labels.collect() }
    }

    const SWEEP: Sweep = Sweep { tolerance: 1e-5, iterations: 100, seed: 9 };

    #[test]
    fn every_class_gives_its_shots_and_the_seed_decides_which() {
        let splits = Splits::new(corners(90, 1), None, corners(300, 2)).unwrap();
        let found = few_shot(&splits, 4, 3, &SWEEP).unwrap();
        assert_eq!((found.shots, found.trials.len()), (4, 3));
        for trial in &found.trials {
            assert_eq!(trial.probe.images, 12);
            for class in 0..3 {
                let of_class = trial.rows.iter().filter(|&&row| row % 3 == class);
                assert_eq!(of_class.count(), 4);
            }
        }
        assert_ne!(found.trials[0].rows, found.trials[1].rows);
        let again = few_shot(&splits, 4, 3, &SWEEP).unwrap();
        assert_eq!(again.trials[2].rows, found.trials[2].rows);
        assert_eq!(again.top1, found.top1);
        let other = few_shot(&splits, 4, 3, &Sweep { seed: 10, ..SWEEP }).unwrap();
        assert_ne!(other.trials[0].rows, found.trials[0].rows);
        let mean = found.trials.iter().map(|trial| trial.probe.top1).sum::<f64>() / 3.0;
        assert!((found.top1 - mean).abs() < 1e-12 && found.deviation >= 0.0);
        assert!(found.top1 > 0.6, "{}", found.top1);
    }

    #[test]
    fn more_shots_help() {
        let splits = Splits::new(corners(300, 1), Some(corners(60, 4)), corners(600, 2)).unwrap();
        let top1 = |shots| few_shot(&splits, shots, 3, &SWEEP).unwrap().top1;
        assert!(top1(16) > top1(1));
        assert_eq!(few_shot(&splits, 2, 1, &SWEEP).unwrap().deviation, 0.0);
    }

    #[test]
    fn classes_with_too_few_pictures_are_named() {
        let splits = Splits::new(corners(30, 1), None, corners(3, 2)).unwrap();
        let error = few_shot(&splits, 8, 1, &SWEEP).unwrap_err().to_string();
        assert!(error.starts_with("class \"0\" has 10 pictures"), "{error}");
        assert!(error.contains("fewer than the 12 that 8 shots need"), "{error}");
        let given = Splits::new(corners(30, 1), Some(corners(3, 5)), corners(3, 2)).unwrap();
        assert!(few_shot(&given, 8, 1, &SWEEP).is_ok());
    }
}
