use jpeg_decoder::{ColorTransform, Decoder, Error};

use super::Format;
use crate::image::{ImageError, Mode, Picture};

const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// What decides how the samples of a JPEG are to be read, and where they start.
#[derive(Debug, Default)]
struct Header {
    width: u16,
    height: u16,
    /// Component identifiers; empty without a frame header.
    components: Vec<u8>,
    jfif: bool,
    /// The colour transform named by an `Adobe` segment.
    adobe: Option<u8>,
    /// Offset of the first entropy-coded byte.
    scan: usize,
}

/// Decodes an 8-bit JPEG with the colour rules of libjpeg and Pillow.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, ImageError> {
    let format = Format::Jpeg;
    let header = Header::parse(bytes).ok_or_else(|| format.damaged("its header is cut off"))?;
    let (width, height) = format.check_size(header.width, header.height)?;
    if !bytes[header.scan..].windows(2).rev().any(|pair| pair == END_OF_IMAGE) {
        return Err(format.damaged("its end is missing"));
    }
    let (mode, transform) = header.colours().ok_or_else(|| {
        format.unsupported(format!("{} colour components", header.components.len()))
    })?;
    let mut decoder = Decoder::new(bytes);
    decoder.set_color_transform(transform);
    let samples = decoder.decode().map_err(|error| match error {
        Error::Unsupported(feature) => format.unsupported(format!("{feature:?}")),
        error => format.damaged(error),
    })?;
    if samples.len() != width * height * mode.channels() {
        return Err(format.unsupported("samples of other than 8 bits"));
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
                    header.components = components.chunks_exact(3).map(|c| c[0]).collect();
                }
                0xe0 => header.jfif |= segment.starts_with(b"JFIF\0"),
                0xee if segment.starts_with(b"Adobe") => header.adobe = segment.get(11).copied(),
                _ => {}
            }
            at += length;
            if marker == START_OF_SCAN {
                header.scan = at;
                return Some(header);
            }
        }
    }

    /// libjpeg's guess of the stored colours. Four components are taken for inverted inks, as
    /// Adobe programs write them and Pillow assumes.
    fn colours(&self) -> Option<(Mode, ColorTransform)> {
        match (self.components.as_slice(), self.adobe) {
            ([_], _) => Some((Mode::Gray, ColorTransform::Grayscale)),
            ([_, _, _], _) if self.jfif => Some((Mode::Rgb, ColorTransform::YCbCr)),
            ([_, _, _], Some(0)) | (b"RGB", None) => Some((Mode::Rgb, ColorTransform::RGB)),
            ([_, _, _], _) => Some((Mode::Rgb, ColorTransform::YCbCr)),
            ([_, _, _, _], None | Some(0)) => Some((Mode::Cmyk, ColorTransform::CMYK)),
            ([_, _, _, _], Some(_)) => Some((Mode::Cmyk, ColorTransform::YCCK)),
            _ => None,
        }
    }
}
