//! cn-clip-model
