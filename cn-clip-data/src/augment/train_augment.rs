use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{RandomResizedCrop, auto_augment::auto_augmented};
use crate::image::{ImageError, Picture, PixelTransform, RgbPicture, check_output, normalise_rgb};

/// The reference's training transform (`--use-augment`): random resized crop, mirroring with
/// probability 0.5, AutoAugment, mean and deviation. The chances are the reference's, not its
/// random numbers.
#[derive(Clone, Copy, Debug)]
pub struct TrainAugment {
    resolution: usize,
    crop: RandomResizedCrop,
}

impl TrainAugment {
    /// A transform to `resolution` x `resolution` pixels.
    pub fn new(resolution: usize) -> Self {
        Self { resolution, crop: RandomResizedCrop::default() }
    }

    /// The augmented picture in RGB before normalisation, `[R, R, 3]`.
    ///
    /// # Errors
    /// When the resolution is 0.
    pub fn rgb_u8(&self, picture: &Picture, seed: u64) -> Result<Vec<u8>, ImageError> {
        if self.resolution == 0 {
            return Err(ImageError::ZeroResolution);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let crop = self.crop.draw(picture.width(), picture.height(), &mut rng);
        let mut rgb = picture
            .crop(crop.left, crop.top, crop.width, crop.height)
            .resize(self.resolution, self.resolution)
            .into_rgb();
        if rng.random() {
            mirror(&mut rgb);
        }
        Ok(auto_augmented(rgb, &mut rng).pixels)
    }
}

impl PixelTransform for TrainAugment {
    fn resolution(&self) -> usize {
        self.resolution
    }

    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        check_output(self.resolution, out)?;
        normalise_rgb(&self.rgb_u8(&Picture::decode(bytes)?, seed)?, out);
        Ok(())
    }
}

fn mirror(picture: &mut RgbPicture) {
    for row in picture.pixels.chunks_exact_mut(3 * picture.width) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::ImageTransform;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/preprocess");

    #[test]
    fn the_seed_decides() {
        let bytes = fs::read(format!("{FIXTURES}/03_scene.jpg")).unwrap();
        let augment = TrainAugment::new(32);
        let run = |seed| {
            let mut out = vec![0.0; 3 * 32 * 32];
            augment.apply(&bytes, seed, &mut out).unwrap();
            out
        };
        assert_eq!(run(1), run(1));
        let mut distinct: Vec<Vec<f32>> = Vec::new();
        for pixels in (0..20).map(run) {
            if !distinct.contains(&pixels) {
                distinct.push(pixels);
            }
        }
        assert!(distinct.len() > 10, "{} different outputs for 20 seeds", distinct.len());
    }

    #[test]
    fn pictures_of_every_mode_pass() {
        for entry in fs::read_dir(FIXTURES).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "json" || e == "safetensors") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let mut out = vec![f32::NAN; 3 * 16 * 16];
            TrainAugment::new(16).apply(&bytes, 7, &mut out).unwrap();
            assert!(out.iter().all(|value| value.is_finite()), "{}", path.display());
        }
    }

    #[test]
    fn a_large_share_stays_close_to_the_picture() {
        let bytes = fs::read(format!("{FIXTURES}/03_scene.jpg")).unwrap();
        let picture = Picture::decode(&bytes).unwrap();
        let plain = ImageTransform::new(64).rgb_u8(&picture).unwrap();
        let plain = RgbPicture { width: 64, height: 64, pixels: plain };
        let mut mirrored = plain.clone();
        mirror(&mut mirrored);
        let (mut upright, mut reversed) = (0, 0);
        for seed in 0..400 {
            let augmented = TrainAugment::new(64).rgb_u8(&picture, seed).unwrap();
            let distance = |other: &RgbPicture| -> u32 {
                let pairs = augmented.iter().zip(&other.pixels);
                pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>() / 12_288
            };
            upright += u32::from(distance(&plain) < 12);
            reversed += u32::from(distance(&mirrored) < 12);
        }
        assert!(upright > 20 && reversed > 20, "{upright} upright, {reversed} mirrored");
    }

    #[test]
    fn resolution_zero_and_bad_bytes_are_errors() {
        assert!(TrainAugment::new(0).apply(b"", 0, &mut []).is_err());
        assert!(TrainAugment::new(2).apply(b"", 0, &mut [0.0; 12]).is_err());
        assert!(TrainAugment::new(2).apply(b"", 0, &mut [0.0; 11]).is_err());
    }
}
