//! Multinomial logistic regression in double precision.

use rayon::prelude::*;

use super::lbfgs::{Limits, minimize};
use super::{ProbeError, Split};
use crate::matrix::{Matrix, multiply};

/// Pictures multiplied at once.
const ROWS: usize = 256;
/// Parts of the data that are summed separately. Fixed, so that the sums, and with them every digit
/// of the result, do not depend on the number of cores.
const PARTS: usize = 16;

/// A trained linear classifier.
#[derive(Clone, Debug)]
pub struct Logistic {
    dim: usize,
    /// Weights `[classes, dim]`, then biases `[classes]`.
    parameters: Vec<f64>,
    /// Mean of the objective over the pictures: cross entropy plus its share of the L2 term.
    pub objective: f64,
    /// Largest value of its gradient, in magnitude.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
}

impl Logistic {
    /// Minimises the sum of the cross entropies of `data` plus `l2 / 2` times the squared weights
    /// (biases are free), as scikit-learn's `LogisticRegression` with `C = 1 / l2` does.
    ///
    /// Stops when no value of the gradient of the mean exceeds `tolerance`, or after `iterations`.
    /// `start` may be a solution for another `l2`.
    ///
    /// # Errors
    /// [`ProbeError::NotFinite`] if numbers overflow.
    pub fn fit(
        data: &Split,
        classes: usize,
        l2: f64,
        tolerance: f64,
        iterations: usize,
        start: Option<&Self>,
    ) -> Result<Self, ProbeError> {
        let objective = Objective::new(data, classes, l2);
        let start = match start {
            Some(start) => start.parameters.clone(),
            None => vec![0.0; classes * (data.dim + 1)],
        };
        let found = minimize(start, Limits { tolerance, iterations }, |parameters, gradient| {
            objective.evaluate(parameters, gradient)
        });
        if !found.value.is_finite() || !found.gradient.is_finite() {
            return Err(ProbeError::NotFinite);
        }
        Ok(Self {
            dim: data.dim,
            parameters: found.point,
            objective: found.value,
            gradient: found.gradient,
            iterations: found.iterations,
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.parameters.len() / (self.dim + 1)
    }

    /// Weights, `[classes, dim]`.
    pub fn weights(&self) -> &[f64] {
        &self.parameters[..self.classes() * self.dim]
    }

    /// Biases, one per class.
    pub fn biases(&self) -> &[f64] {
        &self.parameters[self.classes() * self.dim..]
    }

    /// Scores of features `[rows, dim]` for each class, `[rows, classes]`: logits.
    pub fn scores(&self, features: &[f32]) -> Vec<f32> {
        let classes = self.classes();
        let part = |rows: &[f32]| {
            let mut scores = vec![0.0; rows.len() / self.dim * classes];
            logits(&widen(rows), self.dim, self.weights(), self.biases(), &mut scores);
            scores.into_iter().map(|score| score as f32).collect::<Vec<_>>()
        };
        features.par_chunks(ROWS * self.dim).flat_map_iter(part).collect()
    }
}

/// The function to minimise.
struct Objective<'a> {
    data: &'a Split,
    classes: usize,
    l2: f64,
}

impl<'a> Objective<'a> {
    fn new(data: &'a Split, classes: usize, l2: f64) -> Self {
        Self { data, classes, l2 }
    }

    /// Value at `parameters`; writes the gradient.
    fn evaluate(&self, parameters: &[f64], gradient: &mut [f64]) -> f64 {
        let (dim, rows) = (self.data.dim, self.data.len());
        let size = rows.div_ceil(PARTS).max(1);
        let parts: Vec<(f64, Vec<f64>)> = self
            .data
            .values
            .par_chunks(size * dim)
            .zip(self.data.targets.par_chunks(size))
            .map(|(values, targets)| self.part(values, targets, parameters))
            .collect();
        let (weights, _) = parameters.split_at(self.classes * dim);
        gradient.fill(0.0);
        let mut sum = self.l2 / 2.0 * weights.iter().map(|weight| weight * weight).sum::<f64>();
        for (gradient, weight) in gradient.iter_mut().zip(weights) {
            *gradient = self.l2 * weight;
        }
        for (loss, part) in parts {
            sum += loss;
            gradient.iter_mut().zip(part).for_each(|(gradient, part)| *gradient += part);
        }
        gradient.iter_mut().for_each(|gradient| *gradient /= rows as f64);
        sum / rows as f64
    }

    /// Sum of the cross entropies of some pictures and its gradient.
    fn part(&self, values: &[f32], targets: &[usize], parameters: &[f64]) -> (f64, Vec<f64>) {
        let (dim, classes) = (self.data.dim, self.classes);
        let (weights, biases) = parameters.split_at(classes * dim);
        let mut gradient = vec![0.0; parameters.len()];
        let mut product = vec![0.0; weights.len()];
        let mut scores = vec![0.0; ROWS * classes];
        let mut loss = 0.0;
        for (values, targets) in values.chunks(ROWS * dim).zip(targets.chunks(ROWS)) {
            let values = widen(values);
            let scores = &mut scores[..targets.len() * classes];
            logits(&values, dim, weights, biases, scores);
            for (row, &target) in scores.chunks_exact_mut(classes).zip(targets) {
                loss += cross_entropy(row, target);
            }
            multiply(
                Matrix::new(&*scores, classes).transposed(),
                Matrix::new(&values, dim),
                &mut product,
            );
            let (of_weights, of_biases) = gradient.split_at_mut(weights.len());
            of_weights.iter_mut().zip(&product).for_each(|(sum, part)| *sum += part);
            for row in scores.chunks_exact(classes) {
                of_biases.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
            }
        }
        (loss, gradient)
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// `values` times the transposed weights, plus the biases: `[rows, classes]`.
fn logits(values: &[f64], dim: usize, weights: &[f64], biases: &[f64], scores: &mut [f64]) {
    multiply(Matrix::new(values, dim), Matrix::new(weights, dim).transposed(), scores);
    for row in scores.chunks_exact_mut(biases.len()) {
        row.iter_mut().zip(biases).for_each(|(score, bias)| *score += bias);
    }
}

/// Turns the logits of a picture into the gradient of its cross entropy, which it returns.
fn cross_entropy(row: &mut [f64], target: usize) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let own = row[target] - most;
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - most).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
    row[target] -= 1.0;
    sum.ln() - own
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    fn blobs(rows: usize, classes: usize, spread: f32) -> Split {
        let noise = |i: usize| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * spread;
        let dim = 5;
        let targets: Vec<usize> = (0..rows).map(|row| row % classes).collect();
        let values = (0..rows * dim)
            .map(|i| f32::from(u8::from(i % dim == targets[i / dim])) + noise(i))
            .collect();
        Split { dim, values, targets }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let data = blobs(700, 3, 2.0);
        let objective = Objective::new(&data, 3, 0.7);
        let parameters: Vec<f64> = (0..18).map(|i| (i as f64 * 0.9).sin()).collect();
        let mut gradient = vec![0.0; 18];
        objective.evaluate(&parameters, &mut gradient);
        for i in 0..18 {
            let value = |change: f64| {
                let mut moved = parameters.clone();
                moved[i] += change;
                objective.evaluate(&moved, &mut [0.0; 18])
            };
            let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
            assert!((slope - gradient[i]).abs() < 1e-8, "{i}: {slope} {}", gradient[i]);
        }
    }

    #[test]
    fn separable_data_is_classified_without_error() {
        let data = blobs(300, 4, 0.5);
        let found = Logistic::fit(&data, 4, 0.01, 1e-8, 500, None).unwrap();
        assert!(found.gradient <= 1e-8 && found.iterations < 500);
        let scores = found.scores(&data.values);
        for (row, &target) in scores.chunks(4).zip(&data.targets) {
            assert!(
                row.iter()
                    .enumerate()
                    .all(|(class, &score)| class == target || score < row[target])
            );
        }
        assert_eq!((found.classes(), found.weights().len(), found.biases().len()), (4, 20, 4));
    }

    #[test]
    fn the_optimum_does_not_depend_on_the_start() {
        let data = blobs(200, 3, 3.0);
        let cold = Logistic::fit(&data, 3, 1.0, 1e-9, 500, None).unwrap();
        let other = Logistic::fit(&data, 3, 100.0, 1e-9, 500, None).unwrap();
        let warm = Logistic::fit(&data, 3, 1.0, 1e-9, 500, Some(&other)).unwrap();
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
        assert!(cold.weights().iter().zip(warm.weights()).all(close));
        let norm = |found: &Logistic| found.weights().iter().map(|w| w * w).sum::<f64>();
        assert!(norm(&other) < norm(&cold));
    }

    #[test]
    fn overflow_is_an_error() {
        let mut data = blobs(20, 2, 1.0);
        data.values[3] = f32::INFINITY;
        let error = Logistic::fit(&data, 2, 1.0, 1e-6, 10, None);
        assert!(matches!(error, Err(ProbeError::NotFinite)));
    }

    /// Figures of scikit-learn's `LogisticRegression`; the file says how they were made.
    #[derive(Deserialize)]
    struct Recorded {
        dim: usize,
        classes: usize,
        features: Vec<f32>,
        targets: Vec<usize>,
        fits: Vec<Fit>,
    }

    #[derive(Deserialize)]
    struct Fit {
        l2: f64,
        objective: f64,
        weights: Vec<f64>,
        biases: Vec<f64>,
        accuracy: f64,
    }

    #[test]
    fn solutions_are_those_of_scikit_learn() {
        let path = "../tests/fixtures/linear_probe/sklearn.json";
        let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let recorded: Recorded = serde_json::from_slice(&text).unwrap();
        let Recorded { dim, classes, features: values, targets, fits } = recorded;
        let data = Split { dim, values, targets };
        assert!(fits.len() >= 3);
        for fit in fits {
            let found = Logistic::fit(&data, classes, fit.l2, 1e-10, 1000, None).unwrap();
            assert!((found.objective - fit.objective).abs() < 1e-9, "{}", fit.l2);
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4 * b.abs().max(1.0);
            assert!(found.weights().iter().zip(&fit.weights).all(close), "l2 {}", fit.l2);
            // Only their differences are determined.
            let mean = |biases: &[f64]| biases.iter().sum::<f64>() / classes as f64;
            let (ours, theirs) = (mean(found.biases()), mean(&fit.biases));
            for (a, b) in found.biases().iter().zip(&fit.biases) {
                assert!(close((&(a - ours), &(b - theirs))), "l2 {}", fit.l2);
            }
            let scores = found.scores(&data.values);
            let accuracy = crate::zeroshot::Accuracy::new(&scores, classes, &data.targets);
            assert_eq!(accuracy.unwrap().top1, fit.accuracy);
        }
    }
}
