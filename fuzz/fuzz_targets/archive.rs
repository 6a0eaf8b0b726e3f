//! A whole `.pt` file. An even first byte: the rest is the file. An odd one: a sound archive is
//! made around a pickle and a storage, for no fuzzer guesses a checksum.
#![no_main]

use std::io::{Cursor, Write};

use cn_clip_fuzz::{read_checkpoint, with_file};
use libfuzzer_sys::fuzz_target;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 2 {
        0 => with_file("a.pt", rest, read_checkpoint),
        _ => with_file("a.pt", &archive(rest), read_checkpoint),
    }
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let entries: [(&str, &[u8]); 3] =
        [("a/data.pkl", pickle), ("a/data/0", &[0x3c; 64]), ("a/data/1", &[0x3c; 8])];
    for (name, content) in entries {
        zip.start_file(name, stored).expect("memory");
        zip.write_all(content).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}
