//! The cn-clip binary.

fn main() {}
