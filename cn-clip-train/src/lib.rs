//! cn-clip-train
