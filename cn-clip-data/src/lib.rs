//! Data for Chinese-CLIP: text to token ids, pictures to pixels, files to batches.
//!
//! Nothing here knows about models or devices: what comes out are plain buffers.

pub mod atomic;
pub mod augment;
pub mod error;
pub mod format;
pub mod forms;
pub mod image;
pub mod inspect;
pub mod lmdb;
pub mod loader;
pub mod pread;
pub mod record;
pub mod sampler;
pub mod source;
pub mod tokenizer;

pub use error::DataError;
pub use record::{Id, Pair};
