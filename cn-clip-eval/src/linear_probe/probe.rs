//! The sweep over L2 strengths, and the probe trained with the best.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Logistic, ProbeError, Split, Splits};
use crate::zeroshot::Accuracy;

/// Strengths are `10^(step / 8)` for steps from minus to plus this: 1e-6 to 1e6.
const MOST: i32 = 48;
/// Steps between the first strengths tried: two decades.
const COARSE: usize = 16;

/// How probes are trained.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// Largest value of the gradient of the mean objective at the end.
    pub tolerance: f64,
    /// Steps of L-BFGS at most.
    pub iterations: usize,
    /// Decides what is held out and which pictures the shots are.
    pub seed: u64,
}

impl Default for Sweep {
    /// The CLIP paper's number of steps.
    fn default() -> Self {
        Self { tolerance: 1e-5, iterations: 1000, seed: 123 }
    }
}

/// A probe and how good it is.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The strength chosen.
    pub l2: f64,
    /// Top-1 accuracy on what was held out for the choice, 0 to 1.
    pub validation_top1: f64,
    /// Top-1 accuracy on the test split.
    pub top1: f64,
    /// Mean over its classes.
    pub mean_per_class: f64,
    /// Pictures trained on in the end.
    pub images: usize,
    /// Whether the last training ended within the tolerance.
    pub converged: bool,
    /// Strengths tried and their accuracy on what was held out.
    pub tried: Vec<(f64, f64)>,
    /// The classifier.
    #[serde(skip)]
    pub classifier: Logistic,
}

/// Chooses the L2 strength on the validation split, or on a fifth of the training split where there
/// is none, trains on both together and scores the test split.
///
/// Strengths between 1e-6 and 1e6 in eighths of a decade are searched by halving, from seven of them
/// around the best one found, as in the CLIP paper.
///
/// # Errors
/// [`ProbeError`] if nothing can be held out or numbers overflow.
pub fn probe(splits: &Splits, sweep: &Sweep) -> Result<Probe, ProbeError> {
    let (train, held) = splits.tuning(sweep.seed)?;
    let whole = train.join(&held);
    sweep.run(splits.classes.len(), &train, &held, &whole, &splits.test)
}

impl Sweep {
    /// Tunes on `train` and `held`, trains on `last` and scores `test`.
    pub(super) fn run(
        &self,
        classes: usize,
        train: &Split,
        held: &Split,
        last: &Split,
        test: &Split,
    ) -> Result<Probe, ProbeError> {
        let mut tried: BTreeMap<i32, f64> = BTreeMap::new();
        let mut warm: Option<Logistic> = None;
        let mut attempt = |step: i32, tried: &mut BTreeMap<i32, f64>| -> Result<(), ProbeError> {
            if step.abs() > MOST || tried.contains_key(&step) {
                return Ok(());
            }
            let fitted = self.fit(train, classes, step, warm.as_ref())?;
            tried.insert(step, accuracy(&fitted, held)?.top1);
            warm = Some(fitted);
            Ok(())
        };
        // Strong first: short searches, whose solutions are near the next.
        for step in (0..=2 * MOST).step_by(COARSE).map(|down| MOST - down) {
            attempt(step, &mut tried)?;
        }
        let mut width = COARSE as i32 / 2;
        while width > 0 {
            let middle = best(&tried);
            attempt(middle + width, &mut tried)?;
            attempt(middle - width, &mut tried)?;
            width /= 2;
        }
        let step = best(&tried);
        let classifier = self.fit(last, classes, step, warm.as_ref())?;
        let scored = accuracy(&classifier, test)?;
        Ok(Probe {
            l2: strength(step),
            validation_top1: tried.get(&step).copied().unwrap_or(f64::NAN),
            top1: scored.top1,
            mean_per_class: scored.mean_per_class(),
            images: last.len(),
            converged: classifier.gradient <= self.tolerance,
            tried: tried.into_iter().map(|(step, top1)| (strength(step), top1)).collect(),
            classifier,
        })
    }

    fn fit(
        &self,
        data: &Split,
        classes: usize,
        step: i32,
        start: Option<&Logistic>,
    ) -> Result<Logistic, ProbeError> {
        Logistic::fit(data, classes, strength(step), self.tolerance, self.iterations, start)
    }
}

fn strength(step: i32) -> f64 {
    10_f64.powf(f64::from(step) / 8.0)
}

/// The step of the best accuracy, of equal ones the strongest.
fn best(tried: &BTreeMap<i32, f64>) -> i32 {
    let better = |best: (i32, f64), next: (i32, f64)| if next.1 >= best.1 { next } else { best };
    tried.iter().map(|(&step, &top1)| (step, top1)).reduce(better).map_or(0, |(step, _)| step)
}

fn accuracy(classifier: &Logistic, split: &Split) -> Result<Accuracy, ProbeError> {
    let scores = classifier.scores(&split.values);
    Ok(Accuracy::new(&scores, classifier.classes(), &split.targets)?)
}

#[cfg(test)]
mod tests {
    use super::super::LabelledFeatures;
    use super::*;

    /// Two values tell the class, twenty are noise.
    fn noisy(rows: usize, offset: usize) -> LabelledFeatures {
        let dim = 22;
        let noise = |i: usize| ((i * 7919 + offset * 104_729) % 2003) as f32 / 2003.0 - 0.5;
        let values = (0..rows * dim).map(|i| {
            let (row, column) = (i / dim, i % dim);
            noise(i) * 2.0 + f32::from(u8::from(column == row % 2)) * 1.2
        });
        let labels = (0..rows).map(|row| format!("class {}", row % 2));
        LabelledFeatures { dim, values: values.collect(), labels: labels.collect() }
    }

    #[test]
    fn the_sweep_finds_what_is_best_on_the_validation_split() {
        let splits = Splits::new(noisy(60, 1), Some(noisy(200, 2)), noisy(400, 3)).unwrap();
        let sweep = Sweep { tolerance: 1e-6, iterations: 300, seed: 1 };
        let found = probe(&splits, &sweep).unwrap();
        assert_eq!((found.images, found.converged), (260, true));
        assert!((9..=15).contains(&found.tried.len()), "{:?}", found.tried);
        let most = found.tried.iter().map(|(_, top1)| *top1).fold(0.0, f64::max);
        assert_eq!(found.validation_top1, most);
        assert!(found.top1 > 0.75 && (found.mean_per_class - found.top1).abs() < 0.1, "{found:?}");
        // Each by itself. Weaker ones take longer than is allowed here.
        let held = splits.validation.as_ref().unwrap();
        for &(l2, top1) in found.tried.iter().filter(|(l2, _)| *l2 >= 0.1) {
            let fitted = Logistic::fit(&splits.train, 2, l2, 1e-6, 300, None).unwrap();
            let alone = accuracy(&fitted, held).unwrap().top1;
            assert_eq!(alone, top1, "{l2}");
        }
    }

    #[test]
    fn without_a_validation_split_a_part_is_held_out_and_then_used() {
        let splits = Splits::new(noisy(100, 1), None, noisy(100, 3)).unwrap();
        let sweep = Sweep { iterations: 200, ..Sweep::default() };
        let found = probe(&splits, &sweep).unwrap();
        assert_eq!(found.images, 100);
        let again = probe(&splits, &sweep).unwrap();
        assert_eq!(found.classifier.weights(), again.classifier.weights());
        assert_eq!((found.l2, found.top1), (again.l2, again.top1));
    }

    #[test]
    fn of_equal_strengths_the_strongest_is_taken() {
        let tried = BTreeMap::from([(-16, 0.5), (0, 0.75), (16, 0.75), (32, 0.25)]);
        assert_eq!(best(&tried), 16);
        assert_eq!((strength(16), strength(-48)), (100.0, 1e-6));
    }
}
