use std::fmt;

/// Most pixels a picture may declare: Pillow's decompression-bomb limit.
pub const MAX_PIXELS: u64 = 178_956_970;

/// How large a picture may declare itself to be; looked at before memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimit {
    /// Most pixels in all.
    pub pixels: u64,
    /// Most pixels on a side; `u64::MAX` for any number.
    pub side: u64,
}

impl Default for SizeLimit {
    /// [`MAX_PIXELS`] in all.
    fn default() -> Self {
        Self { pixels: MAX_PIXELS, side: u64::MAX }
    }
}

impl SizeLimit {
    /// Whether a picture of this size may be decoded.
    pub(super) fn allows(self, width: u64, height: u64) -> bool {
        width.max(height) <= self.side && width.saturating_mul(height) <= self.pixels
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in all", self.pixels)?;
        match self.side {
            u64::MAX => Ok(()),
            side => write!(f, " and {side} on a side"),
        }
    }
}
