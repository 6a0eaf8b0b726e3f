//! Accuracy of predictions.

use super::ZeroShotError;

/// Pictures of one class and how many were classified right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassAccuracy {
    /// Pictures of the class.
    pub images: usize,
    /// Those with the class ranked first.
    pub correct: usize,
}

impl ClassAccuracy {
    /// Share classified right, 0 to 1; `None` without pictures.
    pub fn share(&self) -> Option<f64> {
        (self.images > 0).then(|| self.correct as f64 / self.images as f64)
    }
}

/// How often the true class is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Share of pictures with the true class ranked first, 0 to 1.
    pub top1: f64,
    /// Share with the true class among the first five (all pictures, if there are at most five
    /// classes).
    pub top5: f64,
    /// Each class by itself.
    pub per_class: Vec<ClassAccuracy>,
}

impl Accuracy {
    /// Of `probabilities`, `[targets.len(), classes]` row by row, given the true classes.
    ///
    /// Among equal probabilities the earlier class ranks first.
    ///
    /// # Errors
    /// [`ZeroShotError::Shape`] if there are no pictures, sizes differ or a target is no class;
    /// [`ZeroShotError::NotFinite`] names a picture with NaN.
    pub fn new(
        probabilities: &[f32],
        classes: usize,
        targets: &[usize],
    ) -> Result<Self, ZeroShotError> {
        let shape = |what| Err(ZeroShotError::Shape { what });
        if targets.is_empty() || classes == 0 || probabilities.len() != targets.len() * classes {
            let (values, pictures) = (probabilities.len(), targets.len());
            return shape(format!(
                "{values} probabilities are not {pictures} pictures by {classes} classes, or there are none"
            ));
        }
        let mut per_class = vec![ClassAccuracy::default(); classes];
        let mut in_five = 0;
        for (picture, (row, &target)) in
            probabilities.chunks_exact(classes).zip(targets).enumerate()
        {
            let Some(class) = per_class.get_mut(target) else {
                return shape(format!("picture {picture} is of class {target} of {classes}"));
            };
            if row.iter().any(|value| !value.is_finite()) {
                let what = format!("the prediction of picture {picture}");
                return Err(ZeroShotError::NotFinite { what });
            }
            let own = row[target];
            let before =
                |&(class, &other): &(usize, &f32)| other > own || (other == own && class < target);
            let rank = row.iter().enumerate().filter(before).count();
            class.images += 1;
            class.correct += usize::from(rank == 0);
            in_five += usize::from(rank < 5);
        }
        let correct: usize = per_class.iter().map(|class| class.correct).sum();
        let share = |count: usize| count as f64 / targets.len() as f64;
        Ok(Self { top1: share(correct), top5: share(in_five), per_class })
    }

    /// Mean over the classes that have pictures of their shares ranked first: the usual figure where
    /// classes are of different sizes.
    pub fn mean_per_class(&self) -> f64 {
        let shares: Vec<f64> = self.per_class.iter().filter_map(ClassAccuracy::share).collect();
        shares.iter().sum::<f64>() / shares.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_better_and_earlier_equal_classes() {
        let row = [0.1, 0.3, 0.05, 0.3, 0.1, 0.1, 0.05];
        let probabilities: Vec<f32> = (0..7).flat_map(|_| row).collect();
        let accuracy = Accuracy::new(&probabilities, 7, &[0, 1, 2, 3, 4, 5, 1]).unwrap();
        assert_eq!(accuracy.top1, 2.0 / 7.0);
        assert_eq!(accuracy.top5, 6.0 / 7.0);
        assert_eq!(accuracy.per_class[1], ClassAccuracy { images: 2, correct: 2 });
        assert_eq!(accuracy.per_class[3], ClassAccuracy { images: 1, correct: 0 });
        assert_eq!(accuracy.per_class[6], ClassAccuracy { images: 0, correct: 0 });
        // One of six classes with pictures is always right.
        assert_eq!(accuracy.mean_per_class(), 1.0 / 6.0);
    }

    #[test]
    fn bad_input_is_named() {
        let shape = |result| matches!(result, Err(ZeroShotError::Shape { .. }));
        assert!(shape(Accuracy::new(&[], 2, &[])));
        assert!(shape(Accuracy::new(&[0.5; 3], 2, &[0, 1])));
        assert!(shape(Accuracy::new(&[0.5; 2], 2, &[2])));
        assert!(shape(Accuracy::new(&[], 0, &[0])));
        let error = Accuracy::new(&[0.5, 0.5, f32::NAN, 0.5], 2, &[0, 1]).unwrap_err();
        assert!(error.to_string().starts_with("the prediction of picture 1 "), "{error}");
    }
}
