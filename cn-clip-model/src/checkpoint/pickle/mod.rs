//! Pickle as data: reading what `torch.save` writes, and writing what `torch.load` reads.
//!
//! Nothing is executed. The reader knows a fixed list of globals, each with its meaning here, and
//! refuses any other by name.

mod node;
mod object;
mod read;
mod write;

pub use node::{Node, NodeId, Pickle};
pub use read::{PickleError, parse};
pub use write::{PickleWriter, Storage};
