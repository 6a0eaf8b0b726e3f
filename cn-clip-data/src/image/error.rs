use std::{fmt, io, path::PathBuf};

use super::SizeLimit;

/// A picture file format that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Portable Network Graphics.
    Png,
    /// JPEG, baseline or progressive, 8 bits per sample.
    Jpeg,
    /// WebP, lossy or lossless.
    WebP,
    /// GIF; the first frame is used.
    Gif,
    /// Windows bitmap.
    Bmp,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        })
    }
}

/// Why a picture could not be turned into pixels.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The picture has no bytes at all.
    #[error("the picture is empty (0 bytes); supply the file again")]
    NoBytes,
    /// The first bytes belong to no supported format.
    #[error(
        "not a picture in a supported format (first bytes: {head}); \
         supply PNG, JPEG, WebP, GIF or BMP"
    )]
    UnknownFormat {
        /// The first bytes in hexadecimal.
        head: String,
    },
    /// The file is truncated or corrupt.
    #[error("the {format} picture is damaged or cut off ({reason}); obtain the file again")]
    Damaged {
        /// Format of the file.
        format: Format,
        /// What the decoder found.
        reason: String,
    },
    /// The file is sound but uses a feature that is not supported.
    #[error("the {format} picture uses {feature}, which is not supported; save it as 8-bit RGB")]
    Unsupported {
        /// Format of the file.
        format: Format,
        /// The feature in question.
        feature: String,
    },
    /// The header declares more pixels than allowed.
    #[error(
        "the {format} picture declares {width} x {height} pixels, more than the limit of \
         {limit}; scale it down"
    )]
    TooLarge {
        /// Format of the file.
        format: Format,
        /// Declared width in pixels.
        width: u64,
        /// Declared height in pixels.
        height: u64,
        /// What is allowed.
        limit: SizeLimit,
    },
    /// A side of the picture is 0.
    #[error("the picture has no pixels ({width} x {height}); supply another")]
    NoPixels {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// The text is not base64.
    #[error("the base64 text of the picture is invalid ({reason}); encode the file again")]
    Base64 {
        /// What is wrong, with the offset after removal of white space.
        reason: String,
    },
    /// The file could not be read.
    #[error("cannot read the picture {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The output resolution is 0.
    #[error("an image resolution of 0 was asked for; use the resolution of the vision tower")]
    ZeroResolution,
    /// The output slice has the wrong length.
    #[error("the output holds {actual} values but [3, {resolution}, {resolution}] was asked for")]
    OutputLength {
        /// Length of the slice given.
        actual: usize,
        /// Side of the output in pixels.
        resolution: usize,
    },
}
