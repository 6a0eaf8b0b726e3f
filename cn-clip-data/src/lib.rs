//! cn-clip-data
