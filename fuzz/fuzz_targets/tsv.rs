//! A line of `<split>_imgs.tsv`, and the base64 in it.
#![no_main]

use cn_clip_data::{format::image_line, image::decode_base64};
use cn_clip_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok((id, image)) = image_line(line) {
        assert!(!id.is_empty() && !image.is_empty());
        let _ = decode_base64(image.as_bytes());
    }
});
