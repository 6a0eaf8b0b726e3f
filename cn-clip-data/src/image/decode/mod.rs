mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use super::{Format, ImageError, Picture};

/// Most pixels a picture may declare: Pillow's decompression-bomb limit.
pub const MAX_PIXELS: u64 = 178_956_970;

impl Format {
    /// The format that the first bytes of a file announce.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ => None,
        }
    }

    fn damaged(self, reason: impl ToString) -> ImageError {
        ImageError::Damaged { format: self, reason: reason.to_string() }
    }

    fn unsupported(self, feature: impl Into<String>) -> ImageError {
        ImageError::Unsupported { format: self, feature: feature.into() }
    }

    /// Width and height as `usize` when neither is 0 and the area is within [`MAX_PIXELS`].
    fn check_size(
        self,
        width: impl Into<u64>,
        height: impl Into<u64>,
    ) -> Result<(usize, usize), ImageError> {
        let (width, height) = (width.into(), height.into());
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(ImageError::TooLarge { format: self, width, height });
        }
        let (width, height) = (width as usize, height as usize);
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        Ok((width, height))
    }
}

impl Picture {
    /// Decodes a PNG, JPEG, WebP, GIF (first frame) or BMP file, told apart by content. EXIF
    /// orientation and colour profiles are ignored, as the reference ignores them.
    ///
    /// # Errors
    /// When the format is unknown, the file is damaged or cut off, or it declares more than
    /// [`MAX_PIXELS`] pixels.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::NoBytes);
        }
        match Format::detect(bytes) {
            Some(Format::Png) => png::decode(bytes),
            Some(Format::Jpeg) => jpeg::decode(bytes),
            Some(Format::WebP) => webp::decode(bytes),
            Some(Format::Gif) => gif::decode(bytes),
            Some(Format::Bmp) => bmp::decode(bytes),
            None => {
                let head: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                Err(ImageError::UnknownFormat { head: head.join(" ") })
            }
        }
    }
}

/// A palette's colours for all 256 indices; those it does not define are gray, as in Pillow.
fn palette_table(rgb: &[u8]) -> [[u8; 3]; 256] {
    let mut table = std::array::from_fn(|index| [index as u8; 3]);
    for (entry, colour) in table.iter_mut().zip(rgb.chunks_exact(3)) {
        entry.copy_from_slice(colour);
    }
    table
}
