//! The tables of keys in docs/checkpoints.md are those of the code.

#![allow(clippy::unwrap_used)]

use std::{fmt::Write, fs, path::Path};

use burn::tensor::Device;
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{ParamSpec, Part, huggingface_keys, parameters},
};

/// A table of the parameters under `prefix`, the first block or stage for all.
fn table(out: &mut String, title: &str, model: &str, prefixes: &[&str]) {
    let config = ClipConfig::published(model).unwrap();
    let specs = parameters(&Clip::init(&config, &Device::default(), 0));
    let hub = config.vision.patch_size.is_some();
    let wanted = |spec: &&ParamSpec| prefixes.iter().any(|prefix| spec.key.starts_with(prefix));
    let general = |key: &str| {
        key.replace(".resblocks.0.", ".resblocks.N.")
            .replace(".layers.0.", ".layers.N.")
            .replace(".layer.0.", ".layer.N.")
            .replace(".layer1.0.", ".layerS.N.")
    };
    writeln!(out, "\n### {title}\n").unwrap();
    let columns = if hub { " Hugging Face |" } else { "" };
    writeln!(out, "| official | shape | Burn |{columns}").unwrap();
    writeln!(out, "|---|---|---|{}", if hub { "---|" } else { "" }).unwrap();
    for spec in specs.iter().filter(wanted) {
        let numbered = spec.key.split('.').filter_map(|part| part.parse::<usize>().ok());
        let stage = ["layer2", "layer3", "layer4"].iter().any(|stage| spec.key.contains(stage));
        // `downsample` numbers its two parts.
        let block = spec.key.replace("downsample.1", "downsample");
        let later = block.split('.').filter_map(|part| part.parse::<usize>().ok()).any(|n| n > 0);
        if stage || (later && numbered.count() > 0) {
            continue;
        }
        let (key, path) = (general(&spec.key), general(&spec.path));
        write!(out, "| `{key}` | {:?} | `{path}` |", spec.official_shape()).unwrap();
        if hub {
            let names: Vec<String> = huggingface_keys(&spec.key)
                .iter()
                .map(|(key, part)| match part {
                    Part::Whole => format!("`{}`", general(key)),
                    Part::Transposed => format!("`{}`, transposed", general(key)),
                    Part::Third(_) => format!("`{}`, a third of the rows", general(key)),
                })
                .collect();
            write!(out, " {} |", names.join("; ")).unwrap();
        }
        out.push('\n');
    }
}

#[test]
fn tables_are_those_of_the_code() {
    let mut keys = String::new();
    let prefixes = ["text_projection", "logit_scale", "bert."];
    table(
        &mut keys,
        "Both, and the text tower (shapes of RoBERTa-wwm-ext-base)",
        "ViT-B-16",
        &prefixes,
    );
    table(&mut keys, "Vision transformer (shapes of ViT-B-16)", "ViT-B-16", &["visual."]);
    table(&mut keys, "ModifiedResNet (shapes of RN50; stages S from 1 to 4)", "RN50", &["visual."]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checkpoints.md");
    let text = fs::read_to_string(path).unwrap();
    let documented = text.split("<!-- keys -->\n").nth(1).unwrap();
    let documented = documented.split("<!-- /keys -->").next().unwrap();
    assert!(documented == keys, "docs/checkpoints.md needs these tables:\n{keys}");
}
