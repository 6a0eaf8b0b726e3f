//! Encoding on the processor, without gradients: the layers of the transformers by kernels of our
//! own.
//!
//! Burn computes an operation at a time, each of which reads and writes whole tensors. Here the
//! norms, biases, activations and residuals are part of the matrix products they stand beside,
//! attention keeps its scores in the cache, and padding is left out. Only for 32-bit floats on the
//! `flex` backend; everything else, and training, goes by Burn.

#[cfg(feature = "flex")]
mod kernel;
#[cfg(feature = "flex")]
mod layer;
#[cfg(feature = "flex")]
mod math;
#[cfg(feature = "flex")]
mod tower;
#[cfg(not(feature = "flex"))]
#[path = "absent.rs"]
mod tower;

pub(crate) use tower::{Prepared, text, vision};
