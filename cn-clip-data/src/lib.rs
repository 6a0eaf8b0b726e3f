//! cn-clip-data

pub mod atomic;
pub mod augment;
pub mod image;
