//! Memory of an extraction does not grow with its input, counted by an allocator.

#![allow(clippy::unwrap_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::Write,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use cn_clip_eval::{
    extract::{Encoded, Output, input},
    features::{FeatureFormat, Modality, Settings, open},
};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every request is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The largest number of bytes that `run` holds beyond what is held before.
fn peak(run: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    PEAK.load(Relaxed) - before
}

const DIM: usize = 64;
const BATCH: usize = 64;

/// Writes features of a text file of so many lines.
fn extract(folder: &Path, lines: usize, format: FeatureFormat) {
    let (texts, path) = (folder.join("texts.txt"), folder.join(format!("x.{format}")));
    let mut file = std::io::BufWriter::new(fs::File::create(&texts).unwrap());
    for line in 0..lines {
        writeln!(file, "{line} {}", "图".repeat(100)).unwrap();
    }
    file.flush().unwrap();
    for resume in [false, true] {
        let settings = Settings::new();
        let mut output =
            Output::open(&path, format, Modality::Text, DIM, &settings, resume).unwrap();
        let entries = input::texts(&texts).unwrap().entries;
        let mut rest = output.remaining(entries, BATCH, |_| ()).unwrap();
        loop {
            let batch: Vec<_> = rest.by_ref().take(BATCH).map(Result::unwrap).collect();
            // The first run ends in the middle.
            if batch.is_empty() || (!resume && output.rows() > lines / 2) {
                break;
            }
            let ids: Vec<_> = batch.iter().map(|entry| entry.id.clone()).collect();
            let features = vec![0.5; ids.len() * DIM];
            output.write(&Encoded { ids, features, skipped: Vec::new(), cost: 0 }).unwrap();
        }
        if resume {
            assert_eq!(output.finish().unwrap().rows, lines);
        }
    }
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let folder = tempfile::tempdir().unwrap();
    // 6 MB of text, 5 MB of values.
    let lines = 20_000;
    for format in FeatureFormat::ALL {
        let (one, four) = (
            peak(|| extract(folder.path(), lines, format)),
            peak(|| extract(folder.path(), 4 * lines, format)),
        );
        // Hashes of ids; parquet gathers 32 MiB of values with their levels for a row group.
        let groups = if format == FeatureFormat::Parquet { 6 * lines * DIM * 8 } else { 0 };
        let hashes = 3 * lines * 32;
        assert!(four < one + hashes + groups + (1 << 20), "{format}: {one} then {four} bytes");
        if matches!(format, FeatureFormat::Npy | FeatureFormat::Safetensors) {
            let path = folder.path().join(format!("x.{format}"));
            let mut sum = 0.0;
            let held = peak(|| {
                let source = open(&path, Modality::Text).unwrap();
                let mut buffer = Vec::new();
                for first in (0..source.rows()).step_by(1000) {
                    sum += source.read_block(first..first + 1000, &mut buffer).unwrap()[0];
                }
            });
            assert_eq!(sum, 40.0);
            // Ids and their check, no values.
            let values = 4 * lines * DIM * 4;
            assert!(held < values * 3 / 4, "{format}: {held} of {values} bytes");
        }
    }
}
