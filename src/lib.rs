//! Chinese-CLIP in Rust.
