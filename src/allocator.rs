//! The allocator of the binaries.

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3, which its crate does not name.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: c_long = -1;

/// Keeps the large buffers of tensors instead of returning them to the system between operations,
/// which would clear each of their pages again: 15 % of a training step.
pub fn keep_memory() {
    // SAFETY: sets an integer that the allocator reads when it frees memory; any value is valid, at
    // any time.
    unsafe { mi_option_set(PURGE_DELAY, NEVER) }
}
