//! A line of `<split>_texts.jsonl`.
#![no_main]

use cn_clip_data::format::{query_line, text_line};
use cn_clip_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(record) = text_line(line) {
        assert_eq!(query_line(line), Ok((record.text_id, record.text)));
    }
});
