use std::{io, path::Path};

use safetensors::{Dtype, tensor::TensorView};

use super::{ImageError, transform::check_output};
use crate::atomic::write_atomically;

/// Writes pixels `[3, R, R]` as the tensor `pixels` (f32) of a safetensors file; an existing file
/// is replaced only when the new one is whole.
///
/// # Errors
/// [`ImageError::OutputLength`] when `pixels` does not fit `resolution`, [`ImageError::Write`] when
/// the file cannot be written.
pub fn save_pixels(path: &Path, pixels: &[f32], resolution: usize) -> Result<(), ImageError> {
    check_output(resolution, pixels)?;
    let data: Vec<u8> = pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
    let write = || -> io::Result<()> {
        let view = TensorView::new(Dtype::F32, vec![3, resolution, resolution], &data)
            .map_err(io::Error::other)?;
        let file = safetensors::serialize([("pixels", view)], None).map_err(io::Error::other)?;
        write_atomically(path, &file)
    };
    write().map_err(|source| ImageError::Write { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn writes_the_tensor_pixels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        let pixels: Vec<f32> = (0..12).map(|value| value as f32 / 7.0).collect();
        save_pixels(&path, &pixels, 2).unwrap();
        let data = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&data).unwrap();
        assert_eq!(tensors.names(), ["pixels"]);
        let tensor = tensors.tensor("pixels").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[3, 2, 2][..]));
        let bytes: Vec<u8> = pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(tensor.data(), bytes);
    }

    #[test]
    fn refuses_a_wrong_length_and_a_missing_directory() {
        let missing = Path::new("no/such/directory/x.safetensors");
        let error = save_pixels(missing, &[0.0; 11], 2).unwrap_err();
        assert!(matches!(error, ImageError::OutputLength { actual: 11, resolution: 2 }));
        let error = save_pixels(missing, &[0.0; 12], 2).unwrap_err();
        assert!(error.to_string().contains("x.safetensors"), "{error}");
    }
}
