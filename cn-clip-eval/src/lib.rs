//! Feature files, retrieval and zero-shot scoring of Chinese-CLIP.

pub mod annotation;
pub mod evaluation;
pub mod features;
pub mod id;
pub mod knn;
pub mod output;
pub mod predictions;
pub mod python_json;
pub mod recall;
mod scores;

pub use scores::{DEFAULT_BLOCK, ScoreError};
