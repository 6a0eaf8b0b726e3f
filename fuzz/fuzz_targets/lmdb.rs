//! A database file: its keys, and the pictures under them.
#![no_main]

use cn_clip_data::lmdb::LmdbImages;
use cn_clip_fuzz::with_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_file("imgs/data.mdb", bytes, |path| {
        let Some(folder) = path.parent() else { return };
        let Ok(images) = LmdbImages::open(folder) else { return };
        for id in images.ids().unwrap_or_default().into_iter().take(64) {
            let _ = images.image(&id);
        }
    });
});
