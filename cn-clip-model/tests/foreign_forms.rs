//! Layouts of other programs, and the architectures they have.

#![allow(clippy::unwrap_used)]

#[path = "support/forms.rs"]
mod forms;
#[path = "../../tests/support/golden.rs"]
mod golden;

use std::{fs, path::Path};

use burn::tensor::Device;
use cn_clip_model::{
    Clip, ClipConfig, ModelError,
    checkpoint::{self, Checkpoint, ConvertOptions, Dtype, Format, convert, detect_config},
    config::published_models,
};
use forms::{check_features, check_same, config, load, official, options, to};
use golden::fixture;

#[test]
fn resnets_have_no_form_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("folder");
    let error = convert(&official("rn_tiny"), &output, &options("rn_tiny", Format::HuggingFace));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("ResNet") && error.contains("transformers"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn folders_of_hugging_face_have_all_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let options = ConvertOptions {
        vocabulary: Some("[PAD]\n".into()),
        ..options("vit_tiny", Format::HuggingFace)
    };
    convert(&official("vit_tiny"), &folder, &options).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "vocab.txt",
    ] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    // Another file there stays when the model is replaced.
    fs::write(folder.join("README.md"), "kept").unwrap();
    let error = convert(&official("vit_tiny"), &folder, &options).unwrap_err();
    assert!(matches!(error, ModelError::Exists { .. }), "{error}");
    let force = ConvertOptions { force: true, dtype: Some(Dtype::Fp32), ..options };
    convert(&official("vit_tiny"), &folder, &force).unwrap();
    assert_eq!(fs::read_to_string(folder.join("README.md")).unwrap(), "kept");
    check_same(&official("vit_tiny"), &folder);
    // The weights alone load too, in either form.
    check_same(&official("vit_tiny"), &folder.join("model.safetensors"));
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn shards_of_hugging_face_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    to("vit_tiny", Format::HuggingFace, &official("vit_tiny"), &folder);
    let whole = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let (images, texts): (Vec<_>, Vec<_>) =
        tensors.iter().partition(|(key, _)| key.starts_with("vision_model."));
    let mut map = serde_json::Map::new();
    for (name, part) in [("a.safetensors", images), ("b.safetensors", texts)] {
        for (key, _) in &part {
            map.insert(key.to_string(), name.into());
        }
        fs::write(folder.join(name), safetensors::serialize(part, None).unwrap()).unwrap();
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = folder.join("model.safetensors.index.json");
    fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    check_same(&official("vit_tiny"), &folder);
    let escape = serde_json::json!({"weight_map": {"a": "../a.safetensors"}});
    fs::write(&index, escape.to_string()).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    assert!(error.contains("`../a.safetensors`"), "{error}");
}

/// Writes tensors under these keys as a safetensors file.
fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((key, shape, _), bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (key, view.unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn fused_projections_of_flash_attention_are_taken_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flash.safetensors");
    let mut fused: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for (key, tensor) in Checkpoint::open(official("vit_tiny")).unwrap().state_dict {
        let values = tensor.read().unwrap();
        let packed =
            |name: &str| key.replace(&format!("attention.self.{name}"), "attention.self.Wqkv");
        if key.contains("attention.self.query") {
            fused.push((packed("query"), tensor.shape, values));
        } else if key.contains("attention.self.key") || key.contains("attention.self.value") {
            let name = packed(if key.contains(".key.") { "key" } else { "value" });
            let (_, shape, all) = fused.iter_mut().find(|(key, _, _)| *key == name).unwrap();
            shape[0] += tensor.shape[0];
            all.extend(values);
        } else {
            let key = key
                .replace("attn.in_proj_", "attn.Wqkv.")
                .replace("attention.output.dense", "attention.self.out_proj");
            fused.push((format!("module.{key}"), tensor.shape, values));
        }
    }
    assert!(fused.iter().any(|(key, _, _)| key.ends_with("attn.Wqkv.bias")));
    assert!(fused.iter().any(|(key, _, _)| key.ends_with("attention.self.Wqkv.weight")));
    write_tensors(&path, &fused);
    check_same(&official("vit_tiny"), &path);
    check_features("vit_tiny", &load("vit_tiny", &path), 1e-4);
    let output = dir.path().join("official.pt");
    to("vit_tiny", Format::Official, &path, &output);
    check_same(&official("vit_tiny"), &output);
}

#[test]
fn a_tower_alone_becomes_a_plain_state_dict() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Checkpoint::open(official("vit_tiny")).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = whole
        .state_dict
        .iter()
        .filter(|(key, _)| key.starts_with("visual.") || key == "logit_scale")
        .map(|(key, tensor)| (key.clone(), tensor.shape.clone(), tensor.read().unwrap()))
        .collect();
    let towers = tensors.len();
    // The text tower of OpenAI's model, of which nothing is used.
    tensors.push(("token_embedding.weight".into(), vec![2, 2], vec![0.0; 4]));
    tensors.push(("text_projection".into(), vec![2, 2], vec![0.0; 4]));
    let input = dir.path().join("openai.safetensors");
    write_tensors(&input, &tensors);
    let output = dir.path().join("image.pt");
    let converted = convert(&input, &output, &ConvertOptions::new(Format::Official)).unwrap();
    assert_eq!((converted.config, converted.tensors), (None, towers));
    let image = Checkpoint::open(&output).unwrap();
    assert!(!image.is_whole());
    let model = Clip::init(&config("vit_tiny"), &Device::default(), 0);
    checkpoint::load_part(model, &image, |key| key.starts_with("visual.")).unwrap();
    for (key, tensor) in &image.state_dict {
        assert_eq!(tensor.read().unwrap(), whole.get(key).unwrap().read().unwrap(), "{key}");
    }
    let error = convert(&input, &dir.path().join("x.bpk"), &ConvertOptions::new(Format::Burn));
    assert!(error.unwrap_err().to_string().contains("no whole model"));
}

#[test]
fn the_image_tower_of_a_script_archive_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let script = fixture("checkpoints/openai_script.pt");
    let state = Checkpoint::open(fixture("checkpoints/openai_script.safetensors")).unwrap();
    let keys = |checkpoint: &Checkpoint| {
        let mut keys: Vec<String> =
            checkpoint.state_dict.iter().map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    };
    let opened = Checkpoint::open(&script).unwrap();
    assert_eq!(keys(&opened), keys(&state));
    assert!(keys(&opened).contains(&"visual.transformer.resblocks.0.attn.in_proj_weight".into()));
    assert!(opened.get("text_projection").is_none() && opened.get("logit_scale").is_some());
    let output = dir.path().join("image.pt");
    convert(&script, &output, &ConvertOptions::new(Format::Official)).unwrap();
    for file in [script, output] {
        let found = Checkpoint::open(&file).unwrap();
        for (key, tensor) in &state.state_dict {
            let found = found.get(key).unwrap();
            assert_eq!(found.shape, tensor.shape, "{key}");
            assert_eq!(found.read().unwrap(), tensor.read().unwrap(), "{key}");
        }
    }
}

#[test]
fn published_architectures_are_told_by_their_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.safetensors");
    for name in published_models() {
        let config = ClipConfig::published(name).unwrap();
        // A sparse file with the shapes, and nothing in it.
        let specs = checkpoint::parameters(&Clip::init(&config, &Device::default(), 0));
        let mut end = 0usize;
        let mut header = serde_json::Map::new();
        for spec in &specs {
            let (start, shape) = (end, spec.official_shape());
            end += spec.count();
            let info = serde_json::json!({
                "dtype": "U8", "shape": shape, "data_offsets": [start, end],
            });
            header.insert(spec.key.clone(), info);
        }
        let header = serde_json::Value::from(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        fs::write(&path, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len((bytes.len() + end) as u64).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(detect_config(&checkpoint).unwrap(), config, "{name}");
        // Loaded into another one: what would fit is named.
        let model = Clip::init(&self::config("vit_tiny"), &Device::default(), 0);
        let error = checkpoint::load(model, &checkpoint).unwrap_err().to_string();
        let (vision, text) = match name {
            "ViT-H-14" => (name, "RoBERTa-wwm-ext-large-chinese"),
            "RN50" => (name, "RBT3-chinese"),
            _ => (name, "RoBERTa-wwm-ext-base-chinese"),
        };
        let hint = format!("it looks like --vision-model {vision} and --text-model {text}");
        assert!(error.ends_with(&hint), "{error}");
        assert!(error.lines().count() < 40 && error.contains(" more\n"), "{error}");
    }
}

#[test]
fn architectures_that_shapes_do_not_tell_ask_for_one() {
    let error = detect_config(&Checkpoint::open(official("vit_tiny")).unwrap()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("width 32") && error.contains("--text-model"), "{error}");
    let model = Clip::init(&config("vit_tiny"), &Device::default(), 0);
    let other = Checkpoint::open(official("rn_tiny")).unwrap();
    let error = checkpoint::load(model, &other).unwrap_err().to_string();
    let hint = "it looks like an image tower with embed_dim 32, image_resolution 64, \
                vision_layers [1, 1, 1, 1], vision_width 8 and a text tower with";
    assert!(error.contains(hint), "{error}");
}
