use std::panic::{AssertUnwindSafe, catch_unwind};

use mozjpeg::{ColorSpace, Decompress};

use super::Format;
use crate::image::{ImageError, Mode, Picture, SizeLimit};

const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// Size of a JPEG, and where its samples start.
#[derive(Debug, Default)]
struct Header {
    width: u16,
    height: u16,
    /// Number of colour components; 0 without a frame header.
    components: usize,
    /// Offset of the first entropy-coded byte.
    scan: usize,
}

/// Decodes an 8-bit JPEG by libjpeg-turbo's code, as Pillow does: the pixels are the same bits. Four
/// components are taken for inverted inks, as Adobe programs write them and Pillow assumes.
pub(super) fn decode(bytes: &[u8], limit: SizeLimit) -> Result<Picture, ImageError> {
    let format = Format::Jpeg;
    let header = Header::parse(bytes).ok_or_else(|| format.damaged("its header is cut off"))?;
    let (width, height) = format.check_size(limit, header.width, header.height)?;
    if !bytes[header.scan..].windows(2).rev().any(|pair| pair == END_OF_IMAGE) {
        return Err(format.damaged("its end is missing"));
    }
    let (mode, colours) = match header.components {
        1 => (Mode::Gray, ColorSpace::JCS_GRAYSCALE),
        3 => (Mode::Rgb, ColorSpace::JCS_RGB),
        4 => (Mode::Cmyk, ColorSpace::JCS_CMYK),
        count => return Err(format.unsupported(format!("{count} colour components"))),
    };
    // The library reports what it cannot decode by unwinding.
    let decoded = catch_unwind(AssertUnwindSafe(|| -> std::io::Result<Vec<u8>> {
        let mut started = Decompress::new_mem(bytes)?.to_colorspace(colours)?;
        let samples = started.read_scanlines::<u8>()?;
        started.finish()?;
        Ok(samples)
    }));
    let mut samples = match decoded {
        Ok(result) => result.map_err(|error| format.damaged(error))?,
        Err(cause) => {
            let cause = cause.downcast_ref::<String>();
            return Err(format.damaged(cause.map_or("not decodable", String::as_str)));
        }
    };
    if samples.len() != width * height * mode.channels() {
        return Err(format.damaged("its end is missing"));
    }
    if mode == Mode::Cmyk {
        samples.iter_mut().for_each(|sample| *sample = !*sample);
    }
    Picture::new(mode, width, height, samples)
}

impl Header {
    /// Walks the segments up to the first scan; `None` when the file ends before.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut header = Self::default();
        let mut at = 2;
        loop {
            at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
            at += bytes[at..].iter().position(|&byte| byte != 0xff)?;
            let marker = bytes[at];
            at += 1;
            if matches!(marker, 0 | 0x01 | 0xd0..=0xd8) {
                continue;
            }
            let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
            let segment = bytes.get(at + 2..at + length)?;
            match marker {
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    let [_, h1, h0, w1, w0, _, components @ ..] = segment else { return None };
                    header.height = u16::from_be_bytes([*h1, *h0]);
                    header.width = u16::from_be_bytes([*w1, *w0]);
                    header.components = components.len() / 3;
                }
                _ => {}
            }
            at += length;
            if marker == START_OF_SCAN {
                header.scan = at;
                return Some(header);
            }
        }
    }
}
