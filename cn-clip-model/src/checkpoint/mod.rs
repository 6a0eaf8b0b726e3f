//! Checkpoints: official `.pt` files and safetensors in, official `.pt` files out.
//!
//! A pickle is parsed, never executed; sizes that a file declares are checked against what it
//! holds before anything is allocated.

mod keys;
mod load;
mod optimizer;
pub mod pickle;
mod pytorch;
mod safetensors;
mod save;
mod state_dict;
mod tensor;

pub use keys::{Layout, ParamSpec, parameter_count, parameters};
pub use load::{load, load_part, resized_grid, to_module_layout};
pub use optimizer::{Moments, OptimizerState, reference_no_decay, reference_order};
pub use save::{AdamWSettings, SaveOptimizer, save};
pub use state_dict::{Checkpoint, Progress};
pub use tensor::{ElementType, LazyTensor};
