use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageError as CrateError, codecs::webp::WebPDecoder};

use super::Format;
use crate::image::{ImageError, Mode, Picture, SizeLimit};

/// Decodes WebP; of an animation, the first frame.
pub(super) fn decode(bytes: &[u8], limit: SizeLimit) -> Result<Picture, ImageError> {
    let format = Format::WebP;
    let damaged = |error: CrateError| format.damaged(error);
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = format.check_size(limit, width, height)?;
    let mode = match decoder.color_type() {
        ColorType::Rgb8 => Mode::Rgb,
        ColorType::Rgba8 => Mode::Rgba,
        other => return Err(format.unsupported(format!("colour type {other:?}"))),
    };
    let mut samples = vec![0; width * height * mode.channels()];
    decoder.read_image(&mut samples).map_err(damaged)?;
    Picture::new(mode, width, height, samples)
}
