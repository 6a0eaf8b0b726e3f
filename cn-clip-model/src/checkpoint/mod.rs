//! Checkpoints: every form is read, and any is made into any other.
//!
//! A pickle is parsed, never executed; sizes that a file declares are checked against what it
//! holds before anything is allocated. `docs/checkpoints.md` tells of the forms.

mod archive;
mod burnpack;
mod convert;
mod detect;
mod export;
mod format;
mod huggingface;
mod huggingface_config;
mod keys;
mod load;
mod metadata;
mod names;
mod optimizer;
mod output;
pub mod pickle;
mod pytorch;
mod safetensors;
mod save;
mod source;
mod state_dict;
mod tensor;

pub use convert::{ConvertOptions, Converted, ProgressFn, convert};
pub use detect::detect_config;
pub use format::{Dtype, Format};
pub use huggingface::{Part, keys_of as huggingface_keys};
pub use keys::{Layout, ParamSpec, parameter_count, parameters};
pub use load::{load, load_part, resized_grid, to_module_layout};
pub use optimizer::{Moments, OptimizerState, reference_no_decay, reference_order};
pub use save::{AdamWSettings, SaveOptimizer, save};
pub use state_dict::{Checkpoint, Progress};
pub use tensor::{ElementType, LazyTensor};
