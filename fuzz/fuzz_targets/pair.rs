//! The pickle of a pair in a data set: what is read is written and read again the same.
#![no_main]

use cn_clip_data::lmdb::pickle::{decode, encode};
use cn_clip_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(pair) = decode(bytes) {
        assert_eq!(decode(&encode(&pair)).as_ref(), Ok(&pair));
    }
});
