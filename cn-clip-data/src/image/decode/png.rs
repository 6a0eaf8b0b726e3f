use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Limits, Transformations};

use super::{Format, palette_table};
use crate::image::{ImageError, Mode, Picture, SizeLimit};

/// Decodes a PNG into the mode Pillow gives it; the `tRNS` chunk is ignored because transparency is
/// discarded in the end.
pub(super) fn decode(bytes: &[u8], limit: SizeLimit) -> Result<Picture, ImageError> {
    let format = Format::Png;
    let damaged = |error: png::DecodingError| format.damaged(error);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: usize::MAX });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = format.check_size(limit, header.width, header.height)?;
    let mut reader = decoder.read_info().map_err(damaged)?;
    let length = reader.output_buffer_size().ok_or_else(|| format.damaged("size overflows"))?;
    let mut raw = vec![0; length];
    reader.next_frame(&mut raw).map_err(damaged)?;
    let info = reader.info();

    let bits = info.bit_depth as u32;
    let high_bytes = |raw: &[u8]| raw.chunks_exact(2).map(|sample| sample[0]).collect();
    let samples = |raw: Vec<u8>| if bits == 16 { high_bytes(&raw) } else { raw };
    let (mode, samples) = match (info.color_type, info.bit_depth) {
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            let samples = raw.chunks_exact(2).map(|s| u16::from_be_bytes([s[0], s[1]])).collect();
            return Picture::gray16(width, height, samples);
        }
        (ColorType::Grayscale, _) => {
            let white = ((1 << bits) - 1) as u8;
            let mut gray = unpack(raw, width, bits);
            gray.iter_mut().for_each(|value| *value *= 255 / white);
            (if bits == 1 { Mode::Bit } else { Mode::Gray }, gray)
        }
        (ColorType::Indexed, _) => {
            let palette = info.palette.as_deref().ok_or_else(|| format.damaged("no palette"))?;
            let table = palette_table(palette);
            let indices = unpack(raw, width, bits);
            (Mode::Palette, indices.iter().flat_map(|&index| table[usize::from(index)]).collect())
        }
        (ColorType::Rgb, _) => (Mode::Rgb, samples(raw)),
        (ColorType::GrayscaleAlpha, _) => (Mode::GrayAlpha, samples(raw)),
        (ColorType::Rgba, _) => (Mode::Rgba, samples(raw)),
    };
    Picture::new(mode, width, height, samples)
}

/// Rows of `width` samples of `bits` bits, each row padded to whole bytes, as one byte per sample.
fn unpack(raw: Vec<u8>, width: usize, bits: u32) -> Vec<u8> {
    if bits == 8 {
        return raw;
    }
    let per_byte = (8 / bits) as usize;
    let mask = (1 << bits) - 1;
    raw.chunks_exact(width.div_ceil(per_byte))
        .flat_map(|row| {
            (0..width).map(move |x| {
                let shift = 8 - bits * (x % per_byte + 1) as u32;
                (row[x / per_byte] >> shift) & mask
            })
        })
        .collect()
}
