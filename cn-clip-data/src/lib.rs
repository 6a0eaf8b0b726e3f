//! cn-clip-data

pub mod atomic;
pub mod image;
