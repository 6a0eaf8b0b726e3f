//! The pickle of a checkpoint.
#![no_main]

use cn_clip_model::checkpoint::pickle::{Node, parse};
use cn_clip_fuzz as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = parse(bytes) {
        let root = pickle.root();
        let dict = pickle.get(root, "state_dict").unwrap_or(root);
        for (key, value) in pickle.entries(dict).unwrap_or_default() {
            let _ = (pickle.str(*key), pickle.items(*value), pickle.float(*value));
            let _ = matches!(pickle.node(*value), Node::Tensor { .. });
        }
    }
});
