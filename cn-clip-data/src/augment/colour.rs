/// Weights of red, green and blue in gray (ITU-R BT.601).
pub(super) const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// A linear map of RGB colours that keeps gray gray: `matrix * colour + offset` per channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColourMap {
    pub matrix: [[f32; 3]; 3],
    pub offset: f32,
}

impl ColourMap {
    pub fn identity() -> Self {
        Self::scaled(1.0, 0.0)
    }

    fn scaled(factor: f32, offset: f32) -> Self {
        let unit = |row, column| if row == column { factor } else { 0.0 };
        Self { matrix: std::array::from_fn(|r| std::array::from_fn(|c| unit(r, c))), offset }
    }

    /// Multiplies the light.
    pub fn brightness(self, factor: f32) -> Self {
        self.then(Self::scaled(factor, 0.0))
    }

    /// Moves colours away from the gray level `mean`, given before any change.
    pub fn contrast(self, factor: f32, mean: f32) -> Self {
        let gray = self.apply([mean; 3])[0];
        self.then(Self::scaled(factor, (1.0 - factor) * gray))
    }

    /// Moves colours away from their own gray; 0 makes the picture gray.
    pub fn saturation(self, factor: f32) -> Self {
        let mut map = Self::scaled(factor, 0.0);
        for row in &mut map.matrix {
            row.iter_mut().zip(LUMA).for_each(|(value, luma)| *value += (1.0 - factor) * luma);
        }
        self.then(map)
    }

    /// Turns colours about the gray axis by a fraction of a full turn.
    pub fn hue(self, turn: f32) -> Self {
        let (sin, cos) = (turn * std::f32::consts::TAU).sin_cos();
        let (mean, side) = ((1.0 - cos) / 3.0, sin / 3f32.sqrt());
        let matrix = [
            [mean + cos, mean - side, mean + side],
            [mean + side, mean + cos, mean - side],
            [mean - side, mean + side, mean + cos],
        ];
        self.then(Self { matrix, offset: 0.0 })
    }

    /// The map that first does `self`, then `next`.
    fn then(self, next: Self) -> Self {
        let matrix = std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                (0..3).map(|k| next.matrix[row][k] * self.matrix[k][column]).sum()
            })
        });
        Self { matrix, offset: next.apply([self.offset; 3])[0] }
    }

    pub fn apply(&self, colour: [f32; 3]) -> [f32; 3] {
        self.matrix
            .map(|row| row[0] * colour[0] + row[1] * colour[1] + row[2] * colour[2] + self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(actual: [f32; 3], expected: [f32; 3]) {
        let close = actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-3);
        assert!(close, "{actual:?}, not {expected:?}");
    }

    #[test]
    fn steps_do_what_they_say() {
        let map = ColourMap::identity();
        let colour = [200.0, 100.0, 0.0];
        assert_close(map.apply(colour), colour);
        assert_close(map.brightness(0.5).apply(colour), [100.0, 50.0, 0.0]);
        assert_close(map.contrast(0.5, 100.0).apply(colour), [150.0, 100.0, 50.0]);
        assert_close(map.brightness(2.0).contrast(0.0, 60.0).apply(colour), [120.0; 3]);
        assert_close(map.saturation(0.0).apply(colour), [118.5; 3]);
        assert_close(map.hue(1.0 / 3.0).apply(colour), [0.0, 200.0, 100.0]);
        assert_close(map.hue(0.2).hue(-0.2).apply(colour), colour);
    }

    #[test]
    fn gray_stays_gray() {
        let map = ColourMap::identity().brightness(1.2).contrast(0.7, 90.0);
        let gray = map.apply([50.0; 3]);
        assert_close(map.saturation(1.7).hue(0.3).apply([50.0; 3]), gray);
    }
}
