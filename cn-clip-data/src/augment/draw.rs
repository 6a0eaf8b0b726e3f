use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    AffineJitterConfig,
    colour::{ColourMap, LUMA},
};
use crate::image::{IMAGE_MEAN, IMAGE_STD, RgbPicture};

/// What chance decided for one picture.
#[derive(Clone, Debug)]
pub(super) struct Draw {
    /// Right and down, as fractions of the side.
    shift: [f32; 2],
    scale: f32,
    /// Clockwise, in radians.
    angle: f32,
    flip: bool,
    brightness: f32,
    contrast: f32,
    saturation: f32,
    hue: f32,
    erasing: Option<Rectangle>,
}

/// In fractions of the side; may leave the picture.
#[derive(Clone, Debug)]
struct Rectangle {
    left: f32,
    top: f32,
    width: f32,
    height: f32,
}

impl Draw {
    /// Draws the same number of values whatever the configuration.
    pub fn new(config: &AffineJitterConfig, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut between = |low: f32, high: f32| low + (high - low) * rng.random::<f32>();
        let shift = [0; 2].map(|_| between(-config.max_shift, config.max_shift));
        let scale = between(config.scale.0, config.scale.1);
        let angle = between(-config.max_degrees, config.max_degrees).to_radians();
        let mut factor = |range: f32| between(1.0 - range, 1.0 + range);
        let brightness = factor(config.brightness);
        let contrast = factor(config.contrast);
        let saturation = factor(config.saturation);
        let hue = between(-config.hue, config.hue);
        let gray = between(0.0, 1.0) < config.grayscale;
        let flip = between(0.0, 1.0) < config.horizontal_flip;
        let erase = between(0.0, 1.0);
        let [area, aspect, left, top] = [0; 4].map(|_| between(0.0, 1.0));
        let erasing = config.erasing.as_ref().filter(|erasing| erase < erasing.probability);
        let erasing = erasing.map(|erasing| {
            let within = |(low, high): (f32, f32), at: f32| low + (high - low) * at;
            let area = within(erasing.area, area);
            let (low, high) = erasing.aspect;
            let aspect = within((low.ln(), high.ln()), aspect).exp();
            let (width, height) = ((area / aspect).sqrt(), (area * aspect).sqrt());
            let (left, top) = (within((0.0, 1.0 - width), left), within((0.0, 1.0 - height), top));
            Rectangle { left, top, width, height }
        });
        let saturation = if gray { 0.0 } else { saturation };
        Self { shift, scale, angle, flip, brightness, contrast, saturation, hue, erasing }
    }

    /// Bilinear samples (0 to 255) of the picture stretched over the square, then moved.
    pub fn resample(&self, picture: &RgbPicture, side: usize, fill: [u8; 3], out: &mut [f32]) {
        let (width, height) = (picture.width as f32, picture.height as f32);
        let (sin, cos) = self.angle.sin_cos();
        let inverse = 1.0 / (self.scale * side as f32);
        let mirror = if self.flip { -1.0 } else { 1.0 };
        let fill = fill.map(f32::from);
        let area = side * side;
        let center = [0, 1].map(|axis| (0.5 + self.shift[axis]) * side as f32);
        for y in 0..side {
            let dy = y as f32 + 0.5 - center[1];
            for x in 0..side {
                let dx = x as f32 + 0.5 - center[0];
                let u = (0.5 + mirror * (cos * dx + sin * dy) * inverse) * width;
                let v = (0.5 + (cos * dy - sin * dx) * inverse) * height;
                let inside = u >= 0.0 && u <= width && v >= 0.0 && v <= height;
                let colour = if inside { bilinear(picture, u, v) } else { fill };
                for (channel, value) in colour.into_iter().enumerate() {
                    out[channel * area + y * side + x] = value;
                }
            }
        }
    }

    /// Overwrites the rectangle to be erased, if any, with 0, the mean colour.
    pub fn erase(&self, side: usize, planes: &mut [f32]) {
        if let Some(rectangle) = &self.erasing {
            rectangle.clear(side, planes);
        }
    }

    /// Changes the colours of planes of 0 to 255 and normalises them.
    pub fn colour(&self, planes: &mut [f32]) {
        let area = planes.len() / 3;
        let (red, rest) = planes.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let mean = |plane: &[f32]| plane.iter().sum::<f32>() / area as f32;
        let gray = LUMA[0] * mean(red) + LUMA[1] * mean(green) + LUMA[2] * mean(blue);
        let map = ColourMap::identity()
            .brightness(self.brightness)
            .contrast(self.contrast, gray)
            .saturation(self.saturation)
            .hue(self.hue);
        let gain = IMAGE_STD.map(|std| 1.0 / (255.0 * std));
        let bias = [0, 1, 2].map(|channel| IMAGE_MEAN[channel] / IMAGE_STD[channel]);
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            let colour = map.apply([*red, *green, *blue]);
            *red = colour[0].clamp(0.0, 255.0) * gain[0] - bias[0];
            *green = colour[1].clamp(0.0, 255.0) * gain[1] - bias[1];
            *blue = colour[2].clamp(0.0, 255.0) * gain[2] - bias[2];
        }
    }
}

impl Rectangle {
    fn clear(&self, side: usize, planes: &mut [f32]) {
        let pixel = |fraction: f32| ((fraction * side as f32).round() as usize).min(side);
        let (left, top) = (pixel(self.left), pixel(self.top));
        let (right, bottom) = (pixel(self.left + self.width), pixel(self.top + self.height));
        for plane in planes.chunks_exact_mut(side * side) {
            for row in plane.chunks_exact_mut(side).take(bottom).skip(top) {
                row[left.min(right)..right].fill(0.0);
            }
        }
    }
}

/// The colour at (`u`, `v`) in pixels from the upper left corner; edge pixels reach to the edge.
#[inline]
fn bilinear(picture: &RgbPicture, u: f32, v: f32) -> [f32; 3] {
    let split = |position: f32, length: usize| {
        let position = (position - 0.5).clamp(0.0, (length - 1) as f32);
        let first = position as usize;
        (first, (first + 1).min(length - 1), position - first as f32)
    };
    let (left, right, across) = split(u, picture.width);
    let (top, bottom, down) = split(v, picture.height);
    let pixel = |x: usize, y: usize| {
        let at = 3 * (y * picture.width + x);
        [0, 1, 2].map(|channel| f32::from(picture.pixels[at + channel]))
    };
    let corners = [pixel(left, top), pixel(right, top), pixel(left, bottom), pixel(right, bottom)];
    [0, 1, 2].map(|channel| {
        let [a, b, c, d] = corners.map(|corner| corner[channel]);
        let (upper, lower) = (a + (b - a) * across, c + (d - c) * across);
        upper + (lower - upper) * down
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::affine_jitter::tests::{SIDE, STILL, noise};

    #[test]
    fn quarter_turns_and_shifts_move_pixels() {
        let picture = noise(SIDE, SIDE);
        let still = Draw::new(&STILL, 0);
        let sample = |draw: Draw| {
            let mut out = vec![0.0; 3 * SIDE * SIDE];
            draw.resample(&picture, SIDE, [9, 9, 9], &mut out);
            out
        };
        let plain = sample(still.clone());
        let turned = sample(Draw { angle: std::f32::consts::FRAC_PI_2, ..still.clone() });
        let shifted = sample(Draw { shift: [0.25, 0.125], ..still });
        for y in 0..SIDE {
            for x in 0..SIDE {
                let at = |x: usize, y: usize| plain[y * SIDE + x];
                assert!((turned[y * SIDE + x] - at(y, SIDE - 1 - x)).abs() < 0.1);
                let expected = if x < 2 || y < 1 { 9.0 } else { at(x - 2, y - 1) };
                assert!((shifted[y * SIDE + x] - expected).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn draws_stay_in_range_and_depend_on_the_seed() {
        let config = AffineJitterConfig {
            grayscale: 0.25,
            horizontal_flip: 0.5,
            ..AffineJitterConfig::default()
        };
        let draws: Vec<Draw> = (0..4000).map(|seed| Draw::new(&config, seed)).collect();
        let spread = |value: fn(&Draw) -> f32, low: f32, high: f32| {
            assert!(draws.iter().all(|draw| (low..=high).contains(&value(draw))));
            let margin = (high - low) * 0.02;
            assert!(draws.iter().any(|draw| value(draw) < low + margin));
            assert!(draws.iter().any(|draw| value(draw) > high - margin));
        };
        spread(|draw| draw.shift[0], -0.1, 0.1);
        spread(|draw| draw.shift[1], -0.1, 0.1);
        spread(|draw| draw.scale, 0.8, 1.2);
        spread(|draw| draw.angle.to_degrees(), -15.001, 15.001);
        spread(|draw| draw.brightness, 0.8, 1.2);
        spread(|draw| draw.hue, -0.02, 0.02);
        let share = |count: usize| count as f32 / draws.len() as f32;
        assert!((share(draws.iter().filter(|draw| draw.flip).count()) - 0.5).abs() < 0.04);
        let gray = draws.iter().filter(|draw| draw.saturation == 0.0).count();
        assert!((share(gray) - 0.25).abs() < 0.04);
    }
}
