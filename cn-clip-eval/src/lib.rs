//! Feature files, retrieval and zero-shot scoring of Chinese-CLIP.
//!
//! The path of an evaluation: [`features`] holds the embeddings of pictures and texts, [`knn`] ranks
//! one side for each entry of the other, [`predictions`] writes the rankings, [`evaluation`] scores
//! such a file against the annotations that [`annotation`] turns around for the other direction.
//! [`recall`] does the same in memory. [`zeroshot`] classifies pictures with the prompts of
//! [`templates`], [`linear_probe`] by a layer trained on their features. [`report`] shows a run on a
//! page; `serve` (feature `serve`) is a server over a model and features.

pub mod annotation;
pub mod evaluation;
pub mod extract;
pub mod features;
pub mod knn;
pub mod linear_probe;
mod matrix;
pub mod predictions;
pub mod python_json;
pub mod recall;
pub mod report;
mod scores;
#[cfg(feature = "serve")]
pub mod serve;
pub mod templates;
pub mod zeroshot;

pub use scores::{DEFAULT_BLOCK, ScoreError};
