//! The allocator of the binaries: mimalloc, beside which the C library of Linux has the large
//! buffers of tensors.
//!
//! mimalloc holds blocks of different sizes apart. Training, whose buffers have many sizes, took a
//! fifth more memory with it alone; the C library fits them into each other's places.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::c_long,
};

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Bytes from which on a block is large.
const LARGE: usize = 1 << 20;
/// `mi_option_purge_delay` of mimalloc 2 and 3, which its crate does not name.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: c_long = -1;

struct Allocator;

impl Allocator {
    fn is_of_system(layout: Layout) -> bool {
        cfg!(all(target_os = "linux", target_env = "gnu")) && layout.size() >= LARGE
    }
}

// SAFETY: every block is allocated and freed by the same of two allocators, which its layout tells;
// it is copied where a new size is the other's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises for this method.
        unsafe {
            match Self::is_of_system(layout) {
                true => System.alloc(layout),
                false => MiMalloc.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises for this method.
        unsafe {
            match Self::is_of_system(layout) {
                true => System.alloc_zeroed(layout),
                false => MiMalloc.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is of this allocator and layout, as the caller promises.
        unsafe {
            match Self::is_of_system(layout) {
                true => System.dealloc(block, layout),
                false => MiMalloc.dealloc(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the size is valid for this alignment, as the caller promises; so is the block for
        // this layout, and the copy stays within both.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            match (Self::is_of_system(layout), Self::is_of_system(new)) {
                (true, true) => System.realloc(block, layout, size),
                (false, false) => MiMalloc.realloc(block, layout, size),
                _ => {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

/// Keeps the large buffers of tensors instead of returning them to the system between operations,
/// which would clear each of their pages again: 15 % of a training step.
pub fn keep_memory() {
    // SAFETY: sets an integer that the allocator reads when it frees memory; any value is valid, at
    // any time.
    unsafe { mi_option_set(PURGE_DELAY, NEVER) }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets integers of the C library; what it does not take it leaves as it was.
    unsafe {
        // One heap, in which a thread finds what another has freed.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // All blocks come from it, and it never shrinks.
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
