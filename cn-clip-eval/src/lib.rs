//! Feature files, retrieval and zero-shot scoring of Chinese-CLIP.

pub mod features;
pub mod id;
pub mod output;
pub mod python_json;
