//! Scaling of the loss for gradients in fp16 (arXiv 1710.03740).
//!
//! Small gradients vanish in fp16. They are computed larger by a factor, which is taken out again in
//! 32 bits; a step whose gradients overflow is left out and the factor halved.

/// Steps without an overflow after which the factor doubles.
const GROWTH_INTERVAL: u64 = 2000;
/// Factor that a run begins with.
const INITIAL: f64 = 65_536.0;
/// The factor stays below this.
const MOST: f64 = 16_777_216.0;

/// The factor and how it came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    factor: f64,
    /// Steps since it changed.
    steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: INITIAL, steps: 0 }
    }
}

impl LossScale {
    /// A factor that a checkpoint holds, with the steps since it changed.
    pub fn new(factor: u64, steps: u64) -> Self {
        Self { factor: (factor as f64).clamp(1.0, MOST), steps }
    }

    /// What the gradients are multiplied by.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Steps since the factor changed.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Changes after a step; returns whether its gradients, whose norm this is, can be used.
    pub fn update(&mut self, norm: f64) -> bool {
        let finite = norm.is_finite();
        self.steps = if finite { self.steps + 1 } else { 0 };
        if !finite {
            self.factor = (self.factor / 2.0).max(1.0);
        } else if self.steps == GROWTH_INTERVAL {
            self.factor = (self.factor * 2.0).min(MOST);
            self.steps = 0;
        }
        finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_on_overflow_and_doubles_after_a_while() {
        let mut scale = LossScale::default();
        assert!(!scale.update(f64::INFINITY));
        assert!(!scale.update(f64::NAN));
        assert_eq!(scale.factor(), INITIAL / 4.0);
        for _ in 0..GROWTH_INTERVAL {
            assert!(scale.update(1.0));
        }
        assert_eq!((scale.factor(), scale.steps()), (INITIAL / 2.0, 0));
        for _ in 0..100 {
            scale.update(f64::INFINITY);
        }
        assert_eq!(scale.factor(), 1.0);
    }
}
