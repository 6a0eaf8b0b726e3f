//! A safetensors file: the input is its header, behind which lie 64 bytes of data.
#![no_main]

use cn_clip_fuzz::{read_checkpoint, with_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([0x3c; 64]);
    with_file("a.safetensors", &file, read_checkpoint);
});
