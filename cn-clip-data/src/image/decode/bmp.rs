use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageError as CrateError, codecs::bmp::BmpDecoder};

use super::Format;
use crate::image::{ImageError, Mode, Picture, SizeLimit};

/// Decodes a Windows bitmap. A palette is applied at once, since nearest-pixel resizing does not
/// mind; one that is a gray ramp makes the picture gray (Pillow).
pub(super) fn decode(bytes: &[u8], limit: SizeLimit) -> Result<Picture, ImageError> {
    let format = Format::Bmp;
    let failed = |error: CrateError| match error {
        CrateError::Unsupported(error) => format.unsupported(error.to_string()),
        error => format.damaged(error),
    };
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = format.check_size(limit, width, height)?;
    let mode = match (decoder.color_type(), decoder.get_palette()) {
        (ColorType::Rgba8, _) => Mode::Rgba,
        (_, Some(palette)) if !is_gray_ramp(palette, colours_used(bytes)) => Mode::Palette,
        _ => Mode::Rgb,
    };
    let mut samples = vec![0; width * height * mode.channels()];
    decoder.read_image(&mut samples).map_err(failed)?;
    Picture::new(mode, width, height, samples)
}

/// The number of palette entries that the header declares; 0 stands for all.
fn colours_used(bytes: &[u8]) -> usize {
    match (bytes.get(14), bytes.get(46..50)) {
        (Some(40..), Some(&[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => 0,
    }
}

/// Whether the palette is 0, 1, 2, ... in all channels; black and white alone is mode `1`, which
/// is resized like a palette.
fn is_gray_ramp(palette: &[[u8; 3]], used: usize) -> bool {
    let palette = if used == 0 { palette } else { &palette[..used.min(palette.len())] };
    palette.len() > 2
        && palette.iter().enumerate().all(|(index, colour)| *colour == [index as u8; 3])
}
