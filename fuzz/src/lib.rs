//! What all targets need.

use std::{
    alloc::{GlobalAlloc, Layout, System, handle_alloc_error},
    cell::RefCell,
    fs::{self, File},
    io::{Seek, Write},
    path::Path,
};

use cn_clip_model::checkpoint::{Checkpoint, detect_config};
use tempfile::TempDir;

/// Most bytes that a small input may ask for at once.
const LIMIT: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// The system's allocator; a request of more than [`LIMIT`] ends the process, which is a finding.
struct Limited;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size(), layout);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size(), layout);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size, layout);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

fn check(size: usize, layout: Layout) {
    if size > LIMIT {
        handle_alloc_error(layout);
    }
}

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Calls `check` with the path of a file in a folder of its own that holds these bytes. The folder
/// is in memory where the system has such.
pub fn with_file(name: &str, bytes: &[u8], check: impl FnOnce(&Path)) {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            made.expect("a folder for temporary files")
        });
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let mut file = File::options().create(true).write(true).open(&path).expect("a file");
        file.write_all(bytes).expect("room for a file");
        let length = file.stream_position().expect("a file");
        file.set_len(length).expect("a file");
        check(&path);
    });
}

/// Opens a checkpoint and reads every tensor, and the state of an optimizer.
pub fn read_checkpoint(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    let _ = detect_config(&checkpoint);
    for (_, tensor) in &checkpoint.state_dict {
        let _ = tensor.read();
    }
}
