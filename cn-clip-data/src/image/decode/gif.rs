use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{Format, palette_table};
use crate::image::{ImageError, Mode, Picture, SizeLimit};

/// Decodes the first frame, placed on the logical screen. What it leaves free has the transparent
/// index or index 0; a gray-ramp palette makes the picture gray instead of paletted (Pillow).
pub(super) fn decode(bytes: &[u8], limit: SizeLimit) -> Result<Picture, ImageError> {
    let format = Format::Gif;
    let damaged = |error: gif::DecodingError| format.damaged(error);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(damaged)?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    let frame = decoder
        .next_frame_info()
        .map_err(damaged)?
        .ok_or_else(|| format.damaged("it holds no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let background = frame.transparent.unwrap_or(0);
    let local_palette = frame.palette.clone();
    let (width, height) = format.check_size(
        limit,
        (left + frame_width).max(usize::from(screen_width)) as u64,
        (top + frame_height).max(usize::from(screen_height)) as u64,
    )?;

    let mut indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut indices).map_err(damaged)?;
    let mut canvas = vec![background; width * height];
    if frame_width > 0 {
        let rows = canvas.chunks_exact_mut(width).skip(top);
        for (row, frame_row) in rows.zip(indices.chunks_exact(frame_width)) {
            row[left..left + frame_width].copy_from_slice(frame_row);
        }
    }

    let palette = local_palette.as_deref().or(decoder.global_palette()).unwrap_or(&[]);
    if is_gray_ramp(palette) {
        return Picture::new(Mode::Gray, width, height, canvas);
    }
    let table = palette_table(palette);
    let pixels = canvas.iter().flat_map(|&index| table[usize::from(index)]).collect();
    Picture::new(Mode::Palette, width, height, pixels)
}

fn is_gray_ramp(palette: &[u8]) -> bool {
    palette.chunks_exact(3).enumerate().all(|(index, colour)| colour == [index as u8; 3])
}
