//! Learning rate by step.

use std::f64::consts::PI;

/// Linear warm-up, then a half cosine to zero (`cn_clip/training/scheduler.py`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineSchedule {
    /// Highest learning rate.
    pub base: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl CosineSchedule {
    /// Learning rate of a step, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.base * (step + 1) as f64 / self.warmup as f64;
        }
        // A run that is all warm-up has no decay part.
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        0.5 * (1.0 + (PI * done).cos()) * self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_recorded_rates() {
        let schedule = CosineSchedule { base: 1e-3, warmup: 2, total: 6 };
        let expected = [0.0005, 0.001, 0.001, 0.0008535533905932737, 0.0005];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((schedule.rate(step as u64) - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn never_leaves_the_range() {
        for (warmup, total) in [(0, 0), (0, 5), (10, 5), (5, 5)] {
            let schedule = CosineSchedule { base: 1.0, warmup, total };
            for step in 0..20 {
                assert!((0.0..=1.0).contains(&schedule.rate(step)), "{warmup} {total} {step}");
            }
        }
    }
}
