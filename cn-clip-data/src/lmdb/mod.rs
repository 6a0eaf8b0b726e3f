//! LMDB data sets in the layout of the Python program.
//!
//! `<split>/pairs` maps `0`, `1`, … to the pickle of (image id, text id, text) and `num_samples`
//! to their number; `<split>/imgs` maps image ids to base64 of the picture file and `num_images`
//! to their number (`cn_clip/preprocess/build_lmdb_dataset.py`).

mod build;
mod environment;
mod page;
pub mod pickle;
mod read;

pub use build::{BuildOptions, SplitSummary, build_lmdb_dataset};
pub use read::{LmdbDataset, LmdbImages};

/// Key of the number of pairs.
const NUM_SAMPLES: &str = "num_samples";
/// Key of the number of pictures.
const NUM_IMAGES: &str = "num_images";
