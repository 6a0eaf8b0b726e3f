//! The towers on the processor by kernels of our own: whole transformers for evaluation, and whole
//! layers of transformers and blocks of ResNets, with their gradients, for training.
//!
//! Burn computes an operation at a time, each of which reads and writes whole tensors. Here the
//! norms, biases, activations, dropout and residuals are part of the matrix products they stand
//! beside, attention keeps its scores in the cache, and padding is left out. Evaluation can multiply
//! whole numbers instead of floats ([`Precision::Int16`](crate::Precision::Int16)). Only for 32-bit
//! floats on the `flex` backend; everything else goes by Burn.

#[cfg(feature = "flex")]
mod attend;
#[cfg(feature = "flex")]
mod backward;
#[cfg(feature = "flex")]
mod block;
#[cfg(feature = "flex")]
mod bottleneck;
#[cfg(feature = "flex")]
mod channel_norm;
#[cfg(feature = "flex")]
mod epilogue;
#[cfg(feature = "flex")]
mod head;
#[cfg(feature = "flex")]
mod integer;
#[cfg(feature = "flex")]
mod integer_tile;
#[cfg(feature = "flex")]
mod kernel;
#[cfg(feature = "flex")]
mod last;
#[cfg(feature = "flex")]
mod layer;
#[cfg(feature = "flex")]
mod maps;
#[cfg(feature = "flex")]
mod math;
#[cfg(feature = "flex")]
mod norm;
#[cfg(feature = "flex")]
mod operation;
#[cfg(feature = "flex")]
mod packed;
#[cfg(feature = "flex")]
mod patches;
#[cfg(feature = "flex")]
mod product;
#[cfg(feature = "flex")]
mod resnet;
#[cfg(feature = "flex")]
mod rows;
#[cfg(feature = "flex")]
mod sequences;
#[cfg(feature = "flex")]
mod source;
#[cfg(feature = "flex")]
mod tower;
#[cfg(feature = "flex")]
mod train;
#[cfg(feature = "flex")]
mod weight;
#[cfg(feature = "flex")]
mod words;

#[cfg(not(feature = "flex"))]
mod absent;

#[cfg(not(feature = "flex"))]
pub(crate) use absent::{
    Numbers, Prepared, bottleneck, has_integers, lengths, stem, text, text_layer, vision,
    vision_block,
};
#[cfg(feature = "flex")]
pub(crate) use {
    resnet::{bottleneck, stem},
    tower::{Prepared, has_integers, lengths, text, vision},
    train::{text_layer, vision_block},
    weight::Numbers,
};
