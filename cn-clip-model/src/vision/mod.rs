//! Image towers.

pub mod attention_pool;
pub mod batch_norm;
pub mod resnet;
pub mod vit;
