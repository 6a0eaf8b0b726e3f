//! The transformers on the processor by kernels of our own: whole layers for evaluation, and the
//! operations of training that are slow in Burn.
//!
//! Burn computes an operation at a time, each of which reads and writes whole tensors. Here the
//! norms, biases, activations and residuals are part of the matrix products they stand beside,
//! attention keeps its scores in the cache, and padding is left out. Only for 32-bit floats on the
//! `flex` backend; everything else goes by Burn.

#[cfg(feature = "flex")]
mod autodiff;
#[cfg(feature = "flex")]
mod kernel;
#[cfg(feature = "flex")]
mod layer;
#[cfg(feature = "flex")]
mod math;
#[cfg(feature = "flex")]
mod rows;
#[cfg(feature = "flex")]
mod source;
#[cfg(feature = "flex")]
mod tower;

#[cfg(not(feature = "flex"))]
mod absent;

#[cfg(not(feature = "flex"))]
pub(crate) use absent::{Prepared, gelu, quick_gelu, softmax, text, vision};
#[cfg(feature = "flex")]
pub(crate) use {
    autodiff::{gelu, quick_gelu, softmax},
    tower::{Prepared, text, vision},
};
