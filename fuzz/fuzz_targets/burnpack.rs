//! A Burn record.
#![no_main]

use cn_clip_fuzz::{read_checkpoint, with_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| with_file("a.bpk", bytes, read_checkpoint));
