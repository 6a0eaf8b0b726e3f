//! cn-clip-eval
