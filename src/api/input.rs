use std::path::{Path, PathBuf};

use cn_clip_data::image::{ImageError, ImageTransform};
use image::DynamicImage;

/// A picture as it is at hand.
#[derive(Debug, Clone, Copy)]
pub enum ImageInput<'a> {
    /// A PNG, JPEG, WebP, GIF or BMP file.
    Path(&'a Path),
    /// The bytes of such a file.
    Bytes(&'a [u8]),
    /// A picture of the `image` crate.
    Image(&'a DynamicImage),
}

impl ImageInput<'_> {
    pub(super) fn pixels(self, transform: &ImageTransform) -> Result<Vec<f32>, ImageError> {
        match self {
            Self::Path(path) => transform.path_pixels(path),
            Self::Bytes(bytes) => transform.pixels(bytes),
            Self::Image(image) => transform.dynamic_pixels(image),
        }
    }

    pub(super) fn path(self) -> Option<PathBuf> {
        match self {
            Self::Path(path) => Some(path.to_path_buf()),
            Self::Bytes(_) | Self::Image(_) => None,
        }
    }
}

/// What can be given as a picture: a path (also as a string), the bytes of a file, or a
/// [`DynamicImage`].
pub trait AsImage: Sync {
    /// The picture.
    fn as_image(&self) -> ImageInput<'_>;
}

impl AsImage for ImageInput<'_> {
    fn as_image(&self) -> ImageInput<'_> {
        *self
    }
}

impl AsImage for DynamicImage {
    fn as_image(&self) -> ImageInput<'_> {
        ImageInput::Image(self)
    }
}

impl<T: AsImage + ?Sized> AsImage for &T {
    fn as_image(&self) -> ImageInput<'_> {
        (**self).as_image()
    }
}

macro_rules! as_image {
    ($variant:ident: $($kind:ty),+) => {
        $(impl AsImage for $kind {
            fn as_image(&self) -> ImageInput<'_> {
                ImageInput::$variant(self.as_ref())
            }
        })+
    };
}

as_image!(Path: Path, PathBuf, str, String);
as_image!(Bytes: [u8], Vec<u8>);
