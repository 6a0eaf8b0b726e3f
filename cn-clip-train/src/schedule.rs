//! Learning rate by step.

use std::f64::consts::PI;

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decay {
    /// Half a cosine to zero (`cn_clip/training/scheduler.py`).
    #[default]
    Cosine,
    /// A straight line to zero.
    Linear,
    /// The highest learning rate to the end.
    Constant,
}

/// Linear warm-up, then a decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub base: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// Learning rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.base * (step + 1) as f64 / self.warmup as f64;
        }
        // A run that is all warm-up has no decay part.
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.base
            * match self.decay {
                Decay::Cosine => 0.5 * (1.0 + (PI * done).cos()),
                Decay::Linear => 1.0 - done,
                Decay::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule { base: 1e-3, warmup: 2, total: 6, decay: Decay::Cosine };

    #[test]
    fn follows_the_recorded_rates() {
        let expected = [0.0005, 0.001, 0.001, 0.0008535533905932737, 0.0005];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((SCHEDULE.rate(step as u64) - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn other_decays() {
        let linear = Schedule { decay: Decay::Linear, ..SCHEDULE };
        let constant = Schedule { decay: Decay::Constant, ..SCHEDULE };
        for (step, rate) in [(0, 5e-4), (2, 1e-3), (4, 5e-4), (6, 0.0)] {
            assert!((linear.rate(step) - rate).abs() < 1e-15, "{step}");
            assert!(
                (constant.rate(step) - rate.max(if step > 1 { 1e-3 } else { 0.0 })).abs() < 1e-15
            );
        }
    }

    #[test]
    fn never_leaves_the_range() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Constant] {
            for (warmup, total) in [(0, 0), (0, 5), (10, 5), (5, 5)] {
                let schedule = Schedule { base: 1.0, warmup, total, decay };
                for step in 0..20 {
                    assert!((0.0..=1.0).contains(&schedule.rate(step)), "{schedule:?} {step}");
                }
            }
        }
    }
}
