mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use super::{Format, ImageError, Picture, SizeLimit};

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

    /// Width and height as `usize` when neither is 0 and `limit` allows them.
    fn check_size(
        self,
        limit: SizeLimit,
        width: impl Into<u64>,
        height: impl Into<u64>,
    ) -> Result<(usize, usize), ImageError> {
        let (width, height) = (width.into(), height.into());
        if !limit.allows(width, height) {
            return Err(ImageError::TooLarge { format: self, width, height, limit });
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
    /// [`MAX_PIXELS`](super::MAX_PIXELS) pixels.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        Self::decode_within(bytes, SizeLimit::default())
    }

    /// As [`decode`](Self::decode), with another limit on the declared size.
    ///
    /// # Errors
    /// When the format is unknown, the file is damaged or cut off, or it declares more than `limit`.
    pub fn decode_within(bytes: &[u8], limit: SizeLimit) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::NoBytes);
        }
        match Format::detect(bytes) {
            Some(Format::Png) => png::decode(bytes, limit),
            Some(Format::Jpeg) => jpeg::decode(bytes, limit),
            Some(Format::WebP) => webp::decode(bytes, limit),
            Some(Format::Gif) => gif::decode(bytes, limit),
            Some(Format::Bmp) => bmp::decode(bytes, limit),
            None => {
                let head: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                Err(ImageError::UnknownFormat { head: head.join(" ") })
            }
        }
    }
}

/// A palette's colours for all 256 indices; those it does not define are black, as in Pillow.
fn palette_table(rgb: &[u8]) -> [[u8; 3]; 256] {
    let mut table = [[0; 3]; 256];
    for (entry, colour) in table.iter_mut().zip(rgb.chunks_exact(3)) {
        entry.copy_from_slice(colour);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MAX_PIXELS;

    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(::png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = 0xffff_ffffu32;
        for &byte in &bytes[12..29] {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            }
        }
        bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
        bytes
    }

    fn jpeg_header(width: u16, height: u16, components: u8) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xc0, 0, 8 + 3 * components, 8];
        bytes.extend(height.to_be_bytes());
        bytes.extend(width.to_be_bytes());
        bytes.push(components);
        (1..=components).for_each(|id| bytes.extend([id, 0x11, 0]));
        bytes.extend([0xff, 0xda, 0, 2, 0xff, 0xd9]);
        bytes
    }

    #[test]
    fn formats_are_told_by_content() {
        assert!(matches!(Picture::decode(b""), Err(ImageError::NoBytes)));
        for bytes in [&b"G"[..], b"not a picture", b"RIFF\0\0\0\0WAVE", &[0xff, 0xd8]] {
            let error = Picture::decode(bytes).unwrap_err();
            assert!(matches!(error, ImageError::UnknownFormat { .. }), "{error}");
        }
        let error = Picture::decode(b"GIF89a").unwrap_err();
        assert!(matches!(error, ImageError::Damaged { format: Format::Gif, .. }), "{error}");
    }

    #[test]
    fn absurd_sizes_are_refused_before_memory_is_taken() {
        let side = 13_378;
        assert!(u64::from(side) * u64::from(side) > MAX_PIXELS);
        for (width, height) in
            [(side, side), (u32::MAX >> 1, u32::MAX >> 1), (MAX_PIXELS as u32, 2)]
        {
            let error = Picture::decode(&png_header(width, height)).unwrap_err();
            assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        }
        let error = Picture::decode(&jpeg_header(u16::MAX, u16::MAX, 3)).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        let frame = [b',', 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2];
        let screen = [&b"GIF89a"[..], &[0xff; 4], &[0x80, 0, 0, 1, 2, 3, 4, 5, 6], &frame];
        let error = Picture::decode(&screen.concat()).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_limit_of_ones_own_is_kept_to() {
        let limit = SizeLimit { pixels: 100, side: 50 };
        let refused = |bytes: &[u8]| match Picture::decode_within(bytes, limit) {
            Err(ImageError::TooLarge { limit: told, .. }) => told == limit,
            _ => false,
        };
        for (width, height) in [(51, 1), (1, 51), (10, 11), (u16::MAX, u16::MAX)] {
            assert!(refused(&png_header(width.into(), height.into())), "{width} x {height}");
            assert!(refused(&jpeg_header(width, height, 3)), "{width} x {height}");
        }
        assert!(!refused(&png_header(50, 2)) && !refused(&jpeg_header(10, 10, 3)));
        let error = Picture::decode_within(&png_header(51, 1), limit).unwrap_err().to_string();
        assert!(
            error.contains("51 x 1 pixels, more than the limit of 100 in all and 50"),
            "{error}"
        );
    }

    #[test]
    fn pictures_without_pixels_are_refused() {
        let error = Picture::decode(&jpeg_header(0, 3, 3)).unwrap_err();
        assert!(matches!(error, ImageError::NoPixels { .. }), "{error}");
        assert!(Picture::decode(&png_header(0, 1)).is_err());
        let screen =
            [b"GIF89a".as_slice(), &[0; 7], &[b',', 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, b';']];
        assert!(Picture::decode(&screen.concat()).is_err());
    }

    #[test]
    fn a_jpeg_of_two_components_is_not_supported() {
        let error = Picture::decode(&jpeg_header(4, 4, 2)).unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    }
}
