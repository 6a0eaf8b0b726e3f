use rand::Rng;

use super::Operation;
use crate::image::RgbPicture;

/// Kinds of operation in the policy; the magnitude makes an [`Operation`] of each.
#[derive(Clone, Copy, Debug)]
enum Kind {
    AutoContrast,
    Color,
    Contrast,
    Equalize,
    Invert,
    Posterize,
    Rotate,
    Sharpness,
    ShearX,
    Solarize,
}

/// Kind, probability and magnitude (0 to 10).
type Step = (Kind, f64, f64);

use Kind::{
    AutoContrast, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX, Solarize,
};

/// AutoAugment for ImageNet (arXiv 1805.09501), the policy `original` of timm.
const POLICY: [[Step; 2]; 25] = [
    [(Posterize, 0.4, 8.0), (Rotate, 0.6, 9.0)],
    [(Solarize, 0.6, 5.0), (AutoContrast, 0.6, 5.0)],
    [(Equalize, 0.8, 8.0), (Equalize, 0.6, 3.0)],
    [(Posterize, 0.6, 7.0), (Posterize, 0.6, 6.0)],
    [(Equalize, 0.4, 7.0), (Solarize, 0.2, 4.0)],
    [(Equalize, 0.4, 4.0), (Rotate, 0.8, 8.0)],
    [(Solarize, 0.6, 3.0), (Equalize, 0.6, 7.0)],
    [(Posterize, 0.8, 5.0), (Equalize, 1.0, 2.0)],
    [(Rotate, 0.2, 3.0), (Solarize, 0.6, 8.0)],
    [(Equalize, 0.6, 8.0), (Posterize, 0.4, 6.0)],
    [(Rotate, 0.8, 8.0), (Color, 0.4, 0.0)],
    [(Rotate, 0.4, 9.0), (Equalize, 0.6, 2.0)],
    [(Equalize, 0.0, 7.0), (Equalize, 0.8, 8.0)],
    [(Invert, 0.6, 4.0), (Equalize, 1.0, 8.0)],
    [(Color, 0.6, 4.0), (Contrast, 1.0, 8.0)],
    [(Rotate, 0.8, 8.0), (Color, 1.0, 2.0)],
    [(Color, 0.8, 8.0), (Solarize, 0.8, 7.0)],
    [(Sharpness, 0.4, 7.0), (Invert, 0.6, 8.0)],
    [(ShearX, 0.6, 5.0), (Equalize, 1.0, 9.0)],
    [(Color, 0.4, 0.0), (Equalize, 0.6, 3.0)],
    [(Equalize, 0.4, 7.0), (Solarize, 0.2, 4.0)],
    [(Solarize, 0.6, 5.0), (AutoContrast, 0.6, 5.0)],
    [(Invert, 0.6, 4.0), (Equalize, 1.0, 8.0)],
    [(Color, 0.6, 4.0), (Contrast, 1.0, 8.0)],
    [(Equalize, 0.8, 8.0), (Equalize, 0.6, 3.0)],
];

/// Draws one of the policy's 25 pairs of operations; each is kept by its own probability.
pub fn auto_augment(rng: &mut impl Rng) -> impl Iterator<Item = Operation> {
    let pair = POLICY[rng.random_range(0..POLICY.len())];
    pair.map(|(kind, probability, magnitude)| {
        let kept = rng.random::<f64>() < probability;
        let operation = kind.operation(magnitude, rng.random());
        kept.then_some(operation)
    })
    .into_iter()
    .flatten()
}

impl Kind {
    /// Magnitudes as timm maps them; `negate` is the random sign of rotation and shear.
    fn operation(self, magnitude: f64, negate: bool) -> Operation {
        let level = magnitude / 10.0;
        let sign = if negate { -1.0 } else { 1.0 };
        let factor = (level * 1.8 + 0.1) as f32;
        match self {
            AutoContrast => Operation::AutoContrast,
            Color => Operation::Color(factor),
            Contrast => Operation::Contrast(factor),
            Equalize => Operation::Equalize,
            Invert => Operation::Invert,
            Posterize => Operation::Posterize((level * 4.0) as u8 + 4),
            Rotate => Operation::Rotate(sign * level * 30.0),
            Sharpness => Operation::Sharpness(factor),
            ShearX => Operation::ShearX(sign * level * 0.3),
            Solarize => Operation::Solarize((level * 256.0) as u8),
        }
    }
}

/// The picture after a random pair of the policy's operations.
pub fn auto_augmented(picture: RgbPicture, rng: &mut impl Rng) -> RgbPicture {
    auto_augment(rng).fold(picture, |picture, operation| operation.apply(picture))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn magnitudes_are_those_of_timm() {
        assert_eq!(Posterize.operation(8.0, true), Operation::Posterize(7));
        assert_eq!(Posterize.operation(5.0, true), Operation::Posterize(6));
        assert_eq!(Solarize.operation(5.0, true), Operation::Solarize(128));
        assert_eq!(Solarize.operation(7.0, false), Operation::Solarize(179));
        assert_eq!(Rotate.operation(9.0, true), Operation::Rotate(-27.0));
        assert_eq!(Rotate.operation(3.0, false), Operation::Rotate(9.0));
        assert_eq!(ShearX.operation(5.0, true), Operation::ShearX(-0.15));
        assert_eq!(Color.operation(0.0, true), Operation::Color(0.1));
        assert_eq!(Contrast.operation(8.0, true), Operation::Contrast(1.54));
    }

    #[test]
    fn operations_come_as_often_as_the_policy_says() {
        let mut expected = BTreeMap::new();
        for (kind, probability, magnitude) in POLICY.into_iter().flatten() {
            let name = name(kind.operation(magnitude, false));
            *expected.entry(name).or_insert(0.0) += probability / POLICY.len() as f64;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let draws = 40_000;
        let mut counted = BTreeMap::new();
        let mut negative = 0;
        for operation in (0..draws).flat_map(|_| auto_augment(&mut rng).collect::<Vec<_>>()) {
            negative += u32::from(matches!(operation, Operation::Rotate(angle) if angle < 0.0));
            *counted.entry(name(operation)).or_insert(0.0) += 1.0 / f64::from(draws);
        }
        assert_eq!(expected.len(), 10);
        for (name, expected) in &expected {
            assert!((counted[name] - expected).abs() < 0.015, "{name}: {}", counted[name]);
        }
        let negative = f64::from(negative) / f64::from(draws) / expected["Rotate"];
        assert!((negative - 0.5).abs() < 0.05, "{negative}");
    }

    fn name(operation: Operation) -> String {
        let text = format!("{operation:?}");
        text.split('(').next().unwrap_or_default().to_string()
    }
}
