use image::{DynamicImage, GenericImageView};

use super::{
    ImageError,
    resize::{nearest_u8, resample_u8, resample_u16},
};

/// The Pillow mode of a picture: how its samples are laid out and how it is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `1`: black and white, one byte of 0 or 255 per pixel; resized to the nearest pixel.
    Bit,
    /// `P`: palette, kept as the RGB colours it names; resized to the nearest pixel.
    Palette,
    /// `L`: gray.
    Gray,
    /// `LA`: gray and alpha; resized with premultiplied alpha.
    GrayAlpha,
    /// `I;16`: 16-bit gray; values above 255 become white in RGB.
    Gray16,
    /// `RGB`.
    Rgb,
    /// `RGBA`; resized with premultiplied alpha.
    Rgba,
    /// `CMYK`, 255 meaning full ink.
    Cmyk,
}

impl Mode {
    /// Samples per pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Bit | Self::Gray | Self::Gray16 => 1,
            Self::GrayAlpha => 2,
            Self::Palette | Self::Rgb => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Samples {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

/// A decoded picture in its Pillow mode; at least one pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    mode: Mode,
    width: usize,
    height: usize,
    samples: Samples,
}

/// An 8-bit RGB picture, row by row, `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbPicture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture of 8-bit samples, `[height, width, channels]`.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] when a side is 0.
    ///
    /// # Panics
    /// When `mode` is [`Mode::Gray16`] or `samples` has the wrong length.
    pub(crate) fn new(
        mode: Mode,
        width: usize,
        height: usize,
        samples: Vec<u8>,
    ) -> Result<Self, ImageError> {
        assert!(mode != Mode::Gray16, "8-bit samples for a 16-bit mode");
        assert_eq!(samples.len(), width * height * mode.channels(), "sample count");
        Self { mode, width, height, samples: Samples::U8(samples) }.non_empty()
    }

    /// A picture of mode [`Mode::Gray16`], `[height, width]`.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] when a side is 0.
    ///
    /// # Panics
    /// When `samples` has the wrong length.
    pub(crate) fn gray16(
        width: usize,
        height: usize,
        samples: Vec<u16>,
    ) -> Result<Self, ImageError> {
        assert_eq!(samples.len(), width * height, "sample count");
        Self { mode: Mode::Gray16, width, height, samples: Samples::U16(samples) }.non_empty()
    }

    fn non_empty(self) -> Result<Self, ImageError> {
        if self.width == 0 || self.height == 0 {
            return Err(ImageError::NoPixels { width: self.width, height: self.height });
        }
        Ok(self)
    }

    /// The picture held by the `image` crate, in the mode in which Pillow would hold it.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] when a side is 0.
    pub fn from_dynamic(image: &DynamicImage) -> Result<Self, ImageError> {
        let (width, height) = image.dimensions();
        let (width, height) = (width as usize, height as usize);
        let high = |samples: &[u16]| samples.iter().map(|sample| (sample >> 8) as u8).collect();
        let (mode, samples): (Mode, Vec<u8>) = match image {
            DynamicImage::ImageLuma8(gray) => (Mode::Gray, gray.as_raw().clone()),
            DynamicImage::ImageLumaA8(gray) => (Mode::GrayAlpha, gray.as_raw().clone()),
            DynamicImage::ImageRgb8(rgb) => (Mode::Rgb, rgb.as_raw().clone()),
            DynamicImage::ImageRgba8(rgba) => (Mode::Rgba, rgba.as_raw().clone()),
            DynamicImage::ImageLuma16(gray) => {
                return Self::gray16(width, height, gray.as_raw().clone());
            }
            DynamicImage::ImageLumaA16(gray) => (Mode::GrayAlpha, high(gray.as_raw())),
            DynamicImage::ImageRgb16(rgb) => (Mode::Rgb, high(rgb.as_raw())),
            DynamicImage::ImageRgba16(rgba) => (Mode::Rgba, high(rgba.as_raw())),
            other if other.color().has_alpha() => (Mode::Rgba, other.to_rgba8().into_raw()),
            other => (Mode::Rgb, other.to_rgb8().into_raw()),
        };
        Self::new(mode, width, height, samples)
    }

    /// The Pillow mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pillow's `Image.resize((width, height), BICUBIC)`: the aspect ratio is not kept.
    ///
    /// # Panics
    /// When `width` or `height` is 0.
    pub fn resize(&self, width: usize, height: usize) -> Self {
        assert!(width > 0 && height > 0, "resize to {width} x {height}");
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let (from, to) = ((self.width, self.height), (width, height));
        let samples = match (&self.samples, self.mode) {
            (Samples::U16(samples), _) => Samples::U16(resample_u16(samples, from, to)),
            (Samples::U8(samples), Mode::Bit | Mode::Palette) => {
                Samples::U8(nearest_u8(samples, self.mode.channels(), from, to))
            }
            (Samples::U8(samples), Mode::GrayAlpha | Mode::Rgba) => {
                let channels = self.mode.channels();
                let premultiplied = premultiply(samples, channels);
                let mut resized = resample_u8(&premultiplied, channels, from, to);
                unpremultiply(&mut resized, channels);
                Samples::U8(resized)
            }
            (Samples::U8(samples), Mode::Gray | Mode::Gray16 | Mode::Rgb | Mode::Cmyk) => {
                Samples::U8(resample_u8(samples, self.mode.channels(), from, to))
            }
        };
        Self { mode: self.mode, width, height, samples }
    }

    /// The part of `width` x `height` pixels whose upper left corner is (`left`, `top`).
    ///
    /// # Panics
    /// When the part is empty or leaves the picture.
    pub(crate) fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        assert!(width > 0 && height > 0, "crop of {width} x {height}");
        assert!(left + width <= self.width && top + height <= self.height, "crop leaves picture");
        let channels = self.mode.channels();
        fn rows<T: Copy>(samples: &[T], stride: usize, first: usize, len: usize) -> Vec<T> {
            samples.chunks_exact(stride).flat_map(|row| &row[first..first + len]).copied().collect()
        }
        let stride = self.width * channels;
        let (first, len) = (left * channels, width * channels);
        let band = top * stride..(top + height) * stride;
        let samples = match &self.samples {
            Samples::U8(samples) => Samples::U8(rows(&samples[band], stride, first, len)),
            Samples::U16(samples) => Samples::U16(rows(&samples[band], stride, first, len)),
        };
        Self { mode: self.mode, width, height, samples }
    }

    /// Pillow's `Image.convert("RGB")`: alpha is discarded, 16-bit values are clipped at 255.
    pub fn into_rgb(self) -> RgbPicture {
        let Self { mode, width, height, samples } = self;
        let pixels = match (samples, mode) {
            (Samples::U16(samples), _) => {
                samples.iter().flat_map(|&value| [value.min(255) as u8; 3]).collect()
            }
            (Samples::U8(samples), Mode::Palette | Mode::Rgb) => samples,
            (Samples::U8(samples), Mode::Bit | Mode::Gray | Mode::Gray16) => {
                samples.iter().flat_map(|&value| [value; 3]).collect()
            }
            (Samples::U8(samples), Mode::GrayAlpha) => {
                samples.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect()
            }
            (Samples::U8(samples), Mode::Rgba) => {
                samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
            }
            (Samples::U8(samples), Mode::Cmyk) => {
                samples.chunks_exact(4).flat_map(cmyk_to_rgb).collect()
            }
        };
        RgbPicture { width, height, pixels }
    }
}

/// Rounded `a * b / 255`.
fn mul_div_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

fn premultiply(samples: &[u8], channels: usize) -> Vec<u8> {
    let mut out = samples.to_vec();
    for pixel in out.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colours)) = pixel.split_last_mut() {
            colours.iter_mut().for_each(|colour| *colour = mul_div_255(*colour, alpha));
        }
    }
    out
}

fn unpremultiply(samples: &mut [u8], channels: usize) {
    for pixel in samples.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colours)) = pixel.split_last_mut()
            && !matches!(alpha, 0 | 255)
        {
            for colour in colours {
                *colour = (255 * u32::from(*colour) / u32::from(alpha)).min(255) as u8;
            }
        }
    }
}

fn cmyk_to_rgb(pixel: &[u8]) -> [u8; 3] {
    let light = 255 - pixel[3];
    [0, 1, 2].map(|ink| light - mul_div_255(pixel[ink], light))
}
