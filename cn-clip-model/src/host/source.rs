//! Values of tensors of the `flex` backend, without copies.

use std::sync::Arc;

use burn::{
    backend::{Flex, flex::FlexTensor},
    tensor::{Bytes, DType, Shape, Tensor},
};

/// A tensor of 32-bit floats in memory, contiguous.
#[derive(Debug, Clone)]
pub(super) struct Source(FlexTensor);

impl Source {
    /// `None` where it is anything else, or has a graph.
    pub fn of<const D: usize>(tensor: Tensor<D>) -> Option<Self> {
        let tensor = tensor.try_into_primitive::<Flex>().ok()?;
        (tensor.dtype() == DType::F32).then(|| Self::from(&tensor))
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        let layout = self.0.layout();
        &self.0.storage::<f32>()[layout.start_offset()..][..layout.num_elements()]
    }

    pub fn shape(&self) -> Shape {
        self.0.layout().shape().clone()
    }

    /// What holds the values.
    pub fn buffer(&self) -> Arc<Bytes> {
        self.0.data_arc()
    }
}

/// Of 32-bit floats.
impl From<&FlexTensor> for Source {
    fn from(tensor: &FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }
}
