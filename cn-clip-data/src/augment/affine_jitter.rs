use super::draw::Draw;
use crate::image::{ImageError, Picture, PixelTransform, RgbPicture, check_output};

/// How strongly [`AffineJitter`] may change a picture. Shift, angle, hue and the colour factors are
/// drawn uniformly, in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineJitterConfig {
    /// Largest shift along each axis, as a fraction of the side.
    pub max_shift: f32,
    /// Least and largest magnification; 1 keeps the size.
    pub scale: (f32, f32),
    /// Largest rotation in degrees.
    pub max_degrees: f32,
    /// Brightness factors are within 1 +- this.
    pub brightness: f32,
    /// Contrast factors are within 1 +- this.
    pub contrast: f32,
    /// Saturation factors are within 1 +- this.
    pub saturation: f32,
    /// Largest turn of the hue, as a fraction of the colour circle.
    pub hue: f32,
    /// Probability of a gray picture.
    pub grayscale: f32,
    /// Probability of mirroring left and right.
    pub horizontal_flip: f32,
    /// A rectangle overwritten by the mean colour, if any.
    pub erasing: Option<RandomErasing>,
    /// RGB colour of what lies outside the picture.
    pub fill: [u8; 3],
}

impl Default for AffineJitterConfig {
    fn default() -> Self {
        Self {
            max_shift: 0.1,
            scale: (0.8, 1.2),
            max_degrees: 15.0,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.02,
            grayscale: 0.0,
            horizontal_flip: 0.0,
            erasing: None,
            fill: [255; 3],
        }
    }
}

/// Random erasing (arXiv 1708.04896).
#[derive(Clone, Debug, PartialEq)]
pub struct RandomErasing {
    /// Probability of erasing anything.
    pub probability: f32,
    /// Least and largest area of the rectangle, as a fraction of the picture.
    pub area: (f32, f32),
    /// Least and largest height divided by width.
    pub aspect: (f32, f32),
}

/// Random shift, magnification, rotation, mirroring and colours in a single bilinear resampling:
/// cheap enough to train small models on a CPU.
#[derive(Clone, Debug)]
pub struct AffineJitter {
    resolution: usize,
    config: AffineJitterConfig,
}

impl AffineJitter {
    /// A jitter with output `resolution` x `resolution`.
    pub fn new(resolution: usize, config: AffineJitterConfig) -> Self {
        Self { resolution, config }
    }

    /// Writes the jittered, normalised pixels of a decoded picture to `out`, `[3, R, R]`. Pictures
    /// more than twice as wide or high as the output are shrunk to that first.
    ///
    /// # Errors
    /// When `out` has the wrong length.
    pub fn apply_picture(
        &self,
        picture: &Picture,
        seed: u64,
        out: &mut [f32],
    ) -> Result<(), ImageError> {
        check_output(self.resolution, out)?;
        let limit = 2 * self.resolution;
        let shrunk = picture.resize(picture.width().min(limit), picture.height().min(limit));
        self.apply_rgb(&shrunk.into_rgb(), seed, out)
    }

    /// Writes the jittered, normalised pixels of an RGB picture to `out`, `[3, R, R]`.
    ///
    /// # Errors
    /// When the picture is empty or `out` has the wrong length.
    pub fn apply_rgb(
        &self,
        picture: &RgbPicture,
        seed: u64,
        out: &mut [f32],
    ) -> Result<(), ImageError> {
        check_output(self.resolution, out)?;
        let (width, height) = (picture.width, picture.height);
        if width == 0 || height == 0 || picture.pixels.len() != 3 * width * height {
            return Err(ImageError::NoPixels { width, height });
        }
        let draw = Draw::new(&self.config, seed);
        draw.resample(picture, self.resolution, self.config.fill, out);
        draw.colour(out);
        draw.erase(self.resolution, out);
        Ok(())
    }
}

impl PixelTransform for AffineJitter {
    fn resolution(&self) -> usize {
        self.resolution
    }

    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        self.apply_picture(&Picture::decode(bytes)?, seed, out)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::{IMAGE_MEAN, IMAGE_STD, normalise_rgb};

    pub const SIDE: usize = 8;
    pub const STILL: AffineJitterConfig = AffineJitterConfig {
        max_shift: 0.0,
        scale: (1.0, 1.0),
        max_degrees: 0.0,
        brightness: 0.0,
        contrast: 0.0,
        saturation: 0.0,
        hue: 0.0,
        grayscale: 0.0,
        horizontal_flip: 0.0,
        erasing: None,
        fill: [255; 3],
    };

    pub fn noise(width: usize, height: usize) -> RgbPicture {
        let mut state = 7u32;
        let pixels = (0..3 * width * height)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        RgbPicture { width, height, pixels }
    }

    fn run(config: AffineJitterConfig, picture: &RgbPicture, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; 3 * SIDE * SIDE];
        AffineJitter::new(SIDE, config).apply_rgb(picture, seed, &mut out).unwrap();
        out
    }

    fn assert_close(actual: &[f32], expected: &[f32]) {
        let worst = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn without_jitter_the_picture_is_only_normalised() {
        let picture = noise(SIDE, SIDE);
        let mut expected = vec![0.0; 3 * SIDE * SIDE];
        normalise_rgb(&picture.pixels, &mut expected);
        assert_close(&run(STILL, &picture, 1), &expected);
    }

    #[test]
    fn flipping_mirrors_every_row() {
        let picture = noise(SIDE, SIDE);
        let mut expected = run(STILL, &picture, 1);
        expected.chunks_exact_mut(SIDE).for_each(<[f32]>::reverse);
        let flipped = run(AffineJitterConfig { horizontal_flip: 1.0, ..STILL }, &picture, 1);
        assert_close(&flipped, &expected);
    }

    #[test]
    fn magnification_shows_the_centre() {
        let mut picture = noise(SIDE, SIDE);
        let centre = 3 * (SIDE / 2 - 1)..3 * (SIDE / 2 + 1);
        for row in [SIDE / 2 - 1, SIDE / 2] {
            picture.pixels[row * 3 * SIDE..][centre.clone()].fill(77);
        }
        let out = run(AffineJitterConfig { scale: (16.0, 16.0), ..STILL }, &picture, 3);
        let expected = (77.0 / 255.0 - IMAGE_MEAN[0]) / IMAGE_STD[0];
        assert_close(&out[..SIDE * SIDE], &[expected; SIDE * SIDE]);
    }

    #[test]
    fn gray_pictures_have_equal_channels() {
        let out = run(AffineJitterConfig { grayscale: 1.0, ..STILL }, &noise(5, 9), 1);
        let area = SIDE * SIDE;
        let level = |channel: usize, at: usize| {
            out[channel * area + at] * IMAGE_STD[channel] + IMAGE_MEAN[channel]
        };
        for at in 0..area {
            assert!((level(0, at) - level(1, at)).abs() < 1e-4);
            assert!((level(0, at) - level(2, at)).abs() < 1e-4);
        }
    }

    #[test]
    fn erasing_clears_a_rectangle_of_the_area_asked_for() {
        let erasing = RandomErasing { probability: 1.0, area: (0.25, 0.25), aspect: (1.0, 1.0) };
        let config = AffineJitterConfig { erasing: Some(erasing), ..STILL };
        let picture = RgbPicture { width: 1, height: 1, pixels: vec![0; 3] };
        for seed in 0..50 {
            let out = run(config.clone(), &picture, seed);
            assert_eq!(out.iter().filter(|&&value| value == 0.0).count(), 3 * 16);
        }
    }

    #[test]
    fn the_seed_decides() {
        let picture = noise(13, 9);
        let config = AffineJitterConfig::default();
        assert_eq!(run(config.clone(), &picture, 5), run(config.clone(), &picture, 5));
        assert_ne!(run(config.clone(), &picture, 5), run(config, &picture, 6));
    }

    #[test]
    fn senseless_settings_and_input_do_not_panic() {
        let wild = AffineJitterConfig {
            max_shift: f32::NAN,
            scale: (0.0, -1.0),
            max_degrees: f32::INFINITY,
            erasing: Some(RandomErasing {
                probability: 1.0,
                area: (-1.0, 9.0),
                aspect: (0.0, 0.0),
            }),
            ..AffineJitterConfig::default()
        };
        for seed in 0..20 {
            run(wild.clone(), &noise(3, 2), seed);
        }
        let jitter = AffineJitter::new(SIDE, STILL);
        let empty = RgbPicture { width: 0, height: 2, pixels: Vec::new() };
        assert!(jitter.apply_rgb(&empty, 0, &mut [0.0; 3 * SIDE * SIDE]).is_err());
        assert!(jitter.apply_rgb(&noise(2, 2), 0, &mut [0.0; 5]).is_err());
        assert!(jitter.apply(b"GIF89a", 0, &mut [0.0; 3 * SIDE * SIDE]).is_err());
    }
}
