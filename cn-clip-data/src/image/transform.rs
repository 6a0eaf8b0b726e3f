use std::{fs, path::Path, sync::LazyLock};

use image::DynamicImage;

use super::{ImageError, Picture};

/// Mean of the RGB channels over CLIP's training pictures, in units of 0 to 1.
pub const IMAGE_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Standard deviation that goes with [`IMAGE_MEAN`].
#[allow(clippy::excessive_precision)] // as published
pub const IMAGE_STD: [f32; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Turns picture files into the pixels of the image tower.
pub trait PixelTransform: Send + Sync {
    /// Side of the square output in pixels.
    fn resolution(&self) -> usize;

    /// Writes the normalised pixels of the picture file `bytes` to `out`, `[3, R, R]`. The result
    /// depends on the arguments only; transforms without chance ignore `seed`.
    ///
    /// # Errors
    /// When the picture cannot be decoded or `out` has the wrong length.
    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError>;
}

/// The reference's evaluation transform (`image_transform` in `cn_clip/clip/utils.py`): bicubic to
/// R x R without keeping the aspect ratio, RGB, mean and deviation.
#[derive(Clone, Copy, Debug)]
pub struct ImageTransform {
    resolution: usize,
}

impl ImageTransform {
    /// A transform to `resolution` x `resolution` pixels.
    pub fn new(resolution: usize) -> Self {
        Self { resolution }
    }

    /// The pixels of a picture file in memory, `[3, R, R]`.
    ///
    /// # Errors
    /// When the picture cannot be decoded.
    pub fn pixels(&self, bytes: &[u8]) -> Result<Vec<f32>, ImageError> {
        self.picture_pixels(&Picture::decode(bytes)?)
    }

    /// The pixels of a picture file, `[3, R, R]`.
    ///
    /// # Errors
    /// When the file cannot be read or decoded.
    pub fn path_pixels(&self, path: impl AsRef<Path>) -> Result<Vec<f32>, ImageError> {
        let path = path.as_ref();
        let bytes = fs::read(path)
            .map_err(|source| ImageError::Read { path: path.to_path_buf(), source })?;
        self.pixels(&bytes)
    }

    /// The pixels of a picture of the `image` crate, `[3, R, R]`.
    ///
    /// # Errors
    /// When the picture is empty.
    pub fn dynamic_pixels(&self, image: &DynamicImage) -> Result<Vec<f32>, ImageError> {
        self.picture_pixels(&Picture::from_dynamic(image)?)
    }

    /// The pixels of a decoded picture, `[3, R, R]`.
    ///
    /// # Errors
    /// When the resolution is 0.
    pub fn picture_pixels(&self, picture: &Picture) -> Result<Vec<f32>, ImageError> {
        let mut out = vec![0.0; 3 * self.resolution * self.resolution];
        normalise_rgb(&self.rgb_u8(picture)?, &mut out);
        Ok(out)
    }

    /// The resized picture in RGB before normalisation, `[R, R, 3]`.
    ///
    /// # Errors
    /// When the resolution is 0.
    pub fn rgb_u8(&self, picture: &Picture) -> Result<Vec<u8>, ImageError> {
        if self.resolution == 0 {
            return Err(ImageError::ZeroResolution);
        }
        Ok(picture.resize(self.resolution, self.resolution).into_rgb().pixels)
    }
}

impl PixelTransform for ImageTransform {
    fn resolution(&self) -> usize {
        self.resolution
    }

    fn apply(&self, bytes: &[u8], _seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        check_output(self.resolution, out)?;
        normalise_rgb(&self.rgb_u8(&Picture::decode(bytes)?)?, out);
        Ok(())
    }
}

/// Whether `out` is a `[3, resolution, resolution]` buffer with at least one value.
pub(crate) fn check_output(resolution: usize, out: &[f32]) -> Result<(), ImageError> {
    if resolution == 0 {
        return Err(ImageError::ZeroResolution);
    }
    if resolution.checked_mul(resolution).and_then(|area| area.checked_mul(3)) != Some(out.len()) {
        return Err(ImageError::OutputLength { actual: out.len(), resolution });
    }
    Ok(())
}

/// Normalised value of every byte, per channel.
static NORMALISED: LazyLock<[[f32; 256]; 3]> = LazyLock::new(|| {
    std::array::from_fn(|channel| {
        std::array::from_fn(|value| {
            (value as f32 / 255.0 - IMAGE_MEAN[channel]) / IMAGE_STD[channel]
        })
    })
});

/// Writes RGB bytes `[area, 3]` as normalised planes `[3, area]`.
///
/// # Panics
/// When `out` is not as long as `rgb`.
pub fn normalise_rgb(rgb: &[u8], out: &mut [f32]) {
    assert_eq!(rgb.len(), out.len(), "pixel count");
    let table = &*NORMALISED;
    let (red, rest) = out.split_at_mut(rgb.len() / 3);
    let (green, blue) = rest.split_at_mut(rgb.len() / 3);
    for (((pixel, red), green), blue) in rgb.chunks_exact(3).zip(red).zip(green).zip(blue) {
        *red = table[0][usize::from(pixel[0])];
        *green = table[1][usize::from(pixel[1])];
        *blue = table[2][usize::from(pixel[2])];
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb, RgbImage};

    use super::*;

    #[test]
    fn output_is_checked_before_the_picture() {
        let transform = ImageTransform::new(4);
        let error = transform.apply(b"", 0, &mut [0.0; 47]).unwrap_err();
        assert!(matches!(error, ImageError::OutputLength { actual: 47, resolution: 4 }), "{error}");
        let error = ImageTransform::new(0).apply(b"", 0, &mut []).unwrap_err();
        assert!(matches!(error, ImageError::ZeroResolution), "{error}");
        let error = ImageTransform::new(usize::MAX).apply(b"", 0, &mut []).unwrap_err();
        assert!(matches!(error, ImageError::OutputLength { .. }), "{error}");
    }

    #[test]
    fn planes_are_red_green_blue() {
        let image = DynamicImage::ImageRgb8(RgbImage::from_pixel(5, 3, Rgb([255, 0, 51])));
        let pixels = ImageTransform::new(2).dynamic_pixels(&image).unwrap();
        for (channel, value) in [1.0, 0.0, 0.2].into_iter().enumerate() {
            let expected = (value - IMAGE_MEAN[channel]) / IMAGE_STD[channel];
            assert_eq!(pixels[4 * channel..][..4], [expected; 4]);
        }
    }

    #[test]
    fn dynamic_images_equal_their_files() {
        let mut noise = 1u32;
        let mut next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise
        };
        let rgba = image::RgbaImage::from_fn(19, 23, |_, _| image::Rgba(next().to_be_bytes()));
        let rgba = DynamicImage::ImageRgba8(rgba);
        let images = [
            rgba.to_rgb8().into(),
            rgba.to_luma8().into(),
            rgba.to_luma_alpha8().into(),
            DynamicImage::ImageLuma16(image::ImageBuffer::from_fn(9, 9, |x, y| {
                Luma([(x * y * 9) as u16])
            })),
            rgba.to_rgb16().into(),
            rgba.to_rgba16().into(),
            rgba,
        ];
        let transform = ImageTransform::new(11);
        for image in images {
            let mut file = std::io::Cursor::new(Vec::new());
            image.write_to(&mut file, image::ImageFormat::Png).unwrap();
            let expected = transform.pixels(&file.into_inner()).unwrap();
            assert_eq!(transform.dynamic_pixels(&image).unwrap(), expected, "{:?}", image.color());
        }
        let empty = DynamicImage::new_rgb8(0, 4);
        assert!(matches!(transform.dynamic_pixels(&empty), Err(ImageError::NoPixels { .. })));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = ImageTransform::new(4).path_pixels("no/such.png").unwrap_err();
        assert!(error.to_string().contains("no/such.png"), "{error}");
    }
}
