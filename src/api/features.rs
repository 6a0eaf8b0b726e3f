use burn::tensor::{Device, Tensor, TensorData};

use super::Error;

/// Features of pictures or texts in ordinary memory: one row of unit length for each.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    values: Vec<f32>,
    dim: usize,
}

impl Features {
    /// Features with no row yet, of `dim` values each.
    pub(super) fn with_capacity(rows: usize, dim: usize) -> Self {
        Self { values: Vec::with_capacity(rows * dim), dim }
    }

    /// Appends the rows of a tensor `[rows, dim]`.
    pub(super) fn append(&mut self, rows: Tensor<2>) -> Result<(), Error> {
        let values: Vec<f32> = read(rows)?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Error::NotFinite);
        }
        self.values.extend(values);
        Ok(())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Number of values in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// A row, if there is one at `index`.
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        self.rows().nth(index)
    }

    /// The rows, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }

    /// All values, `[len, dim]` row by row.
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// All values, `[len, dim]` row by row.
    pub fn into_vec(self) -> Vec<f32> {
        self.values
    }

    /// The rows as a tensor on a device, `[len, dim]`.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let data = TensorData::new(self.values.clone(), [self.len(), self.dim]);
        Tensor::from_data(data, device)
    }
}

fn read(rows: Tensor<2>) -> Result<Vec<f32>, Error> {
    let data = rows.try_into_data().map_err(|error| Error::Device(error.to_string()))?;
    data.try_into_vec().map_err(|error| Error::Device(error.to_string()))
}
