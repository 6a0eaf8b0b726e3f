//! Limited-memory BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) with a line
//! search by bisection for the weak Wolfe conditions (Lewis and Overton 2013).

use std::collections::VecDeque;

/// Pairs of steps and gradient changes remembered.
const MEMORY: usize = 10;
/// Share of the predicted decrease that a step must reach.
const DECREASE: f64 = 1e-4;
/// Share of the slope that may remain after a step.
const SLOPE: f64 = 0.9;
/// Trials of a line search; more only bisect rounding errors.
const TRIALS: usize = 40;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest value of the gradient.
    pub(super) tolerance: f64,
    /// Steps.
    pub(super) iterations: usize,
}

/// Where the search has ended.
#[derive(Clone, Debug)]
pub(super) struct Minimum {
    pub(super) point: Vec<f64>,
    pub(super) value: f64,
    /// Largest value of the gradient, in magnitude.
    pub(super) gradient: f64,
    pub(super) iterations: usize,
}

/// One evaluated point.
struct Point {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// Searches a minimum from `start`; `objective` writes the gradient to its second argument.
pub(super) fn minimize(
    start: Vec<f64>,
    limits: Limits,
    mut objective: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Minimum {
    let mut evaluate = |at: Vec<f64>| {
        let mut gradient = vec![0.0; at.len()];
        let value = objective(&at, &mut gradient);
        Point { at, value, gradient }
    };
    let mut here = evaluate(start);
    let mut memory = Memory::default();
    let mut iterations = 0;
    while largest(&here.gradient) > limits.tolerance && iterations < limits.iterations {
        let mut direction = memory.direction(&here.gradient);
        if dot(&direction, &here.gradient) >= 0.0 {
            // Rounding has spoilt the memory.
            memory = Memory::default();
            direction = memory.direction(&here.gradient);
        }
        let first = match memory.pairs.is_empty() {
            true => 1.0 / dot(&here.gradient, &here.gradient).sqrt().max(1.0),
            false => 1.0,
        };
        let Some(next) = line_search(&here, &direction, first, &mut evaluate) else { break };
        memory.remember(&here, &next);
        here = next;
        iterations += 1;
    }
    let gradient = largest(&here.gradient);
    Minimum { point: here.at, value: here.value, gradient, iterations }
}

/// A point along `direction` that is lower and less steep, or at least lower.
fn line_search(
    here: &Point,
    direction: &[f64],
    first: f64,
    evaluate: &mut impl FnMut(Vec<f64>) -> Point,
) -> Option<Point> {
    let slope = dot(direction, &here.gradient);
    let (mut low, mut high, mut step) = (0.0, f64::INFINITY, first);
    let mut best: Option<Point> = None;
    for _ in 0..TRIALS {
        let at = here.at.iter().zip(direction).map(|(x, d)| x + step * d).collect();
        let next = evaluate(at);
        if next.value > here.value + DECREASE * step * slope || next.value.is_nan() {
            high = step;
        } else if dot(direction, &next.gradient) < SLOPE * slope {
            low = step;
            best = Some(next);
        } else {
            return Some(next);
        }
        step = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * low };
    }
    best.filter(|best| best.value < here.value)
}

/// The last steps, oldest first.
#[derive(Default)]
struct Memory {
    pairs: VecDeque<Pair>,
}

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// Their product, positive.
    product: f64,
}

impl Memory {
    fn remember(&mut self, before: &Point, after: &Point) {
        let minus =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let (step, change) =
            (minus(&after.at, &before.at), minus(&after.gradient, &before.gradient));
        let product = dot(&step, &change);
        if product > f64::EPSILON * dot(&change, &change) {
            if self.pairs.len() == MEMORY {
                self.pairs.pop_front();
            }
            self.pairs.push_back(Pair { step, change, product });
        }
    }

    /// Minus the gradient times the estimate of the inverse Hessian.
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut direction: Vec<f64> = gradient.iter().map(|value| -value).collect();
        let mut shares = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let share = dot(&pair.step, &direction) / pair.product;
            add(&mut direction, -share, &pair.change);
            shares.push(share);
        }
        if let Some(last) = self.pairs.back() {
            let scale = last.product / dot(&last.change, &last.change);
            direction.iter_mut().for_each(|value| *value *= scale);
        }
        for (pair, share) in self.pairs.iter().zip(shares.into_iter().rev()) {
            let back = dot(&pair.change, &direction) / pair.product;
            add(&mut direction, share - back, &pair.step);
        }
        direction
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tolerance: 1e-10, iterations: 500 };

    #[test]
    fn quadratics_are_solved() {
        // Curvatures from 1 to 100.
        let curvature = |i: usize| 10_f64.powf(i as f64 / 9.5);
        let found = minimize(vec![0.0; 20], LIMITS, |x, gradient| {
            let mut value = 0.0;
            for (i, (x, gradient)) in x.iter().zip(gradient).enumerate() {
                *gradient = curvature(i) * (x - i as f64);
                value += curvature(i) * (x - i as f64).powi(2) / 2.0;
            }
            value
        });
        assert!(found.gradient <= 1e-10 && found.iterations < 200, "{found:?}");
        assert!(found.point.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-8));
    }

    #[test]
    fn the_valley_of_rosenbrock_is_followed() {
        let found = minimize(vec![-1.2, 1.0], LIMITS, |x, gradient| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            gradient.copy_from_slice(&[-2.0 * a - 400.0 * x[0] * b, 200.0 * b]);
            a * a + 100.0 * b * b
        });
        assert!((found.point[0] - 1.0).abs() < 1e-8 && (found.point[1] - 1.0).abs() < 1e-8);
        assert!(found.value < 1e-18 && found.iterations < 60, "{found:?}");
    }

    #[test]
    fn the_start_may_be_the_minimum_and_steps_may_be_limited() {
        let square = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 2.0 * x[0];
            x[0] * x[0]
        };
        let found = minimize(vec![0.0], LIMITS, square);
        assert_eq!((found.iterations, found.point), (0, vec![0.0]));
        let found = minimize(vec![9.0], Limits { iterations: 0, ..LIMITS }, square);
        assert_eq!((found.point[0], found.value, found.gradient), (9.0, 81.0, 18.0));
    }

    #[test]
    fn nothing_endless_happens_where_there_is_no_minimum() {
        let found = minimize(vec![0.0], LIMITS, |_, gradient| {
            gradient[0] = 1.0;
            f64::NAN
        });
        assert_eq!(found.iterations, 0);
    }
}
