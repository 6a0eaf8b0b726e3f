//! Every form of a checkpoint becomes every other one and gives the recorded features.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use burn_store::{BurnpackStore, ModuleSnapshot};
use cn_clip_model::{
    Clip, ClipConfig, ModelError, Pass,
    checkpoint::{
        self, Checkpoint, ConvertOptions, Converted, Dtype, ElementType, Format, convert,
        detect_config,
    },
    config::published_models,
    token_tensor,
};
use golden::{Golden, fixture};

const VARIANTS: [&str; 2] = ["vit_tiny", "rn_tiny"];

fn config(variant: &str) -> ClipConfig {
    let path = fixture(&format!("model/{variant}/config.json"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut model = json["model_config"].clone();
    model.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(model).unwrap()
}

fn official(variant: &str) -> PathBuf {
    fixture(&format!("model/{variant}/checkpoint_fp16.pt"))
}

fn options(variant: &str, format: Format) -> ConvertOptions {
    ConvertOptions { config: Some(config(variant)), ..ConvertOptions::new(format) }
}

fn to(variant: &str, format: Format, input: &Path, output: &Path) -> Converted {
    convert(input, output, &options(variant, format)).unwrap()
}

/// Features of a loaded model against the recorded ones.
fn check_features(variant: &str, model: &Clip, tolerance: f32) {
    let golden = Golden::open(&format!("model/{variant}/forward_eval.safetensors"));
    let device = Device::default();
    let pixels = golden.get("pixels");
    let pixels = TensorData::new(pixels.values.clone(), pixels.shape.clone());
    let image = model.encode_image(Tensor::<4>::from_data(pixels, &device), None, Pass::Eval);
    let tokens = token_tensor(&golden.get("tokens").ints(), 52, &device);
    let text = model.encode_text(tokens, Pass::Eval);
    let floats = |features: Tensor<2>| features.into_data().try_into_vec::<f32>().unwrap();
    golden.check("image_features", &floats(image), tolerance);
    golden.check("text_features", &floats(text), tolerance);
}

fn load(variant: &str, path: &Path) -> Clip {
    let model = Clip::init(&config(variant), &Device::default(), 0);
    checkpoint::load(model, &Checkpoint::open(path).unwrap()).unwrap()
}

/// The same keys in the same order with the same values.
fn check_same(one: &Path, other: &Path) {
    let (one, other) = (Checkpoint::open(one).unwrap(), Checkpoint::open(other).unwrap());
    assert_eq!(one.state_dict.len(), other.state_dict.len());
    for (key, tensor) in &one.state_dict {
        let found = other.get(key).unwrap_or_else(|| panic!("no {key}"));
        assert_eq!(found.count(), tensor.count(), "{key}");
        assert_eq!(found.read().unwrap(), tensor.read().unwrap(), "{key}");
    }
}

#[test]
fn every_form_becomes_every_form() {
    let formats = [Format::Official, Format::Safetensors, Format::Burn, Format::HuggingFace];
    let dir = tempfile::tempdir().unwrap();
    for variant in VARIANTS {
        let formats = &formats[..if variant == "rn_tiny" { 3 } else { 4 }];
        for first in formats {
            let middle = dir.path().join(format!("{variant}-{first}"));
            let converted = to(variant, *first, &official(variant), &middle);
            assert_eq!(converted.config, Some(config(variant)));
            check_features(variant, &load(variant, &middle), 1e-4);
            check_same(&official(variant), &middle);
            for second in formats {
                let end = dir.path().join(format!("{variant}-{first}-{second}"));
                to(variant, *second, &middle, &end);
                check_same(&official(variant), &end);
            }
        }
    }
    let hidden = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
    assert!(!fs::read_dir(dir.path()).unwrap().any(|entry| hidden(entry.unwrap())));
}

#[test]
fn configuration_and_progress_travel_along() {
    let dir = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(official("vit_tiny")).unwrap();
    for format in [Format::Safetensors, Format::Burn, Format::HuggingFace] {
        let path = dir.path().join(format.to_string());
        to("vit_tiny", format, &official("vit_tiny"), &path);
        let checkpoint = Checkpoint::open(&path).unwrap();
        // Heads of 16, which no shape tells.
        assert_eq!(detect_config(&checkpoint).unwrap(), config("vit_tiny"), "{format}");
        if format != Format::HuggingFace {
            assert_eq!(checkpoint.progress, original.progress);
            assert!(original.progress.step > 0 || !original.progress.name.is_empty());
        }
    }
}

#[test]
fn records_are_those_of_burn() {
    let dir = tempfile::tempdir().unwrap();
    for variant in VARIANTS {
        let path = dir.path().join(format!("{variant}.bpk"));
        to(variant, Format::Burn, &official(variant), &path);
        // Read by Burn itself, by its module records and by its store.
        let fresh = || Clip::init(&config(variant), &Device::default(), 3);
        check_features(variant, &fresh().try_load_file(&path).unwrap(), 1e-4);
        let mut model = fresh();
        let result = model.load_from(&mut BurnpackStore::from_file(&path)).unwrap();
        assert!(result.errors.is_empty() && result.missing.is_empty() && result.unused.is_empty());
        check_features(variant, &model, 1e-4);
        // Written by Burn itself, read here.
        let (record, store) = (dir.path().join("record.bpk"), dir.path().join("store.bpk"));
        model.save_into(&mut BurnpackStore::from_file(&store).overwrite(true)).unwrap();
        model.save_file(&record).unwrap();
        for file in [record, store] {
            check_features(variant, &load(variant, &file), 1e-4);
            check_same(&official(variant), &file);
        }
    }
}

#[test]
fn half_precision_stays_within_its_rounding() {
    let dir = tempfile::tempdir().unwrap();
    for format in [Format::Official, Format::Safetensors, Format::Burn, Format::HuggingFace] {
        for (dtype, element, tolerance) in
            [(Dtype::Fp16, ElementType::F16, 1e-3), (Dtype::Bf16, ElementType::Bf16, 2e-2)]
        {
            let path = dir.path().join(format!("{format}-{element:?}"));
            let options = ConvertOptions { dtype: Some(dtype), ..options("vit_tiny", format) };
            convert(&official("vit_tiny"), &path, &options).unwrap();
            check_features("vit_tiny", &load("vit_tiny", &path), tolerance);
            let found = Checkpoint::open(&path).unwrap();
            let element_of = |key: &str| found.get(key).unwrap().element;
            assert_eq!(element_of("visual.proj"), element, "{format}");
            assert_eq!(element_of("bert.embeddings.LayerNorm.weight"), element);
            let kept = matches!(format, Format::Official | Format::Safetensors);
            let norm = if kept { ElementType::F32 } else { element };
            for key in ["visual.ln_pre.weight", "visual.positional_embedding", "logit_scale"] {
                assert_eq!(element_of(key), norm, "{format} {key}");
            }
        }
    }
    let path = dir.path().join("fp32.pt");
    let options =
        ConvertOptions { dtype: Some(Dtype::Fp32), ..options("rn_tiny", Format::Official) };
    convert(&official("rn_tiny"), &path, &options).unwrap();
    for (key, tensor) in Checkpoint::open(&path).unwrap().state_dict {
        let counter = key.ends_with("num_batches_tracked");
        let expected = if counter { ElementType::I64 } else { ElementType::F32 };
        assert_eq!(tensor.element, expected, "{key}");
    }
    check_same(&official("rn_tiny"), &path);
}

#[test]
fn a_value_that_fp16_cannot_hold_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("large.safetensors");
    let values = [1.0f32, -1e6].map(f32::to_le_bytes).concat();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &values);
    let tensors = [("visual.proj", view.unwrap())];
    fs::write(&input, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let output = dir.path().join("out.pt");
    let half =
        |dtype| ConvertOptions { dtype: Some(dtype), ..ConvertOptions::new(Format::Official) };
    let error = convert(&input, &output, &half(Dtype::Fp16)).unwrap_err().to_string();
    assert!(error.contains("visual.proj") && error.contains("-1000000"), "{error}");
    assert!(!output.exists());
    convert(&input, &output, &half(Dtype::Bf16)).unwrap();
}

#[test]
fn optimizer_state_stays_in_official_files() {
    let dir = tempfile::tempdir().unwrap();
    let packed = fs::File::open(fixture("train_run/epoch2_with_optimizer.pt.gz")).unwrap();
    let input = dir.path().join("epoch2.pt");
    let mut out = fs::File::create(&input).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    let meta: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("train_run/meta.json")).unwrap()).unwrap();
    let config: ClipConfig = serde_json::from_value(meta["model_config"].clone()).unwrap();
    let options =
        |format| ConvertOptions { config: Some(config.clone()), ..ConvertOptions::new(format) };
    let output = dir.path().join("again.pt");
    let converted = convert(&input, &output, &options(Format::Official)).unwrap();
    assert!(!converted.optimizer_left_out);
    let (one, other) = (Checkpoint::open(&input).unwrap(), Checkpoint::open(&output).unwrap());
    assert_eq!(one.progress, other.progress);
    let (one, other) = (one.optimizer.unwrap(), other.optimizer.unwrap());
    assert_eq!((&one.group_sizes, one.settings), (&other.group_sizes, other.settings));
    assert!(one.settings.learning_rate > 0.0 && one.settings.weight_decay == 0.05);
    assert_eq!(one.moments.len(), 71);
    for ((index, one), (same, other)) in one.moments.iter().zip(&other.moments) {
        assert_eq!((index, one.step), (same, other.step));
        assert_eq!(one.first.read().unwrap(), other.first.read().unwrap());
        assert_eq!(one.second.read().unwrap(), other.second.read().unwrap());
    }
    let record = dir.path().join("weights.bpk");
    assert!(convert(&input, &record, &options(Format::Burn)).unwrap().optimizer_left_out);
}

#[test]
fn another_resolution_resizes_the_positional_embedding() {
    let dir = tempfile::tempdir().unwrap();
    for (variant, resolution) in [("vit_tiny", 56), ("rn_tiny", 96)] {
        let mut config = config(variant);
        config.vision.image_resolution = resolution;
        let expected = dir.path().join(format!("{variant}-expected.pt"));
        checkpoint::save(&expected, &load_with(&config, variant), &Default::default(), None)
            .unwrap();
        for format in [Format::Official, Format::Burn, Format::HuggingFace] {
            if variant == "rn_tiny" && format == Format::HuggingFace {
                continue;
            }
            let path = dir.path().join(format!("{variant}-{format}"));
            let options =
                ConvertOptions { config: Some(config.clone()), ..ConvertOptions::new(format) };
            convert(
                &official(variant),
                &path,
                &ConvertOptions { dtype: Some(Dtype::Fp32), ..options },
            )
            .unwrap();
            check_same(&expected, &path);
        }
    }
}

fn load_with(config: &ClipConfig, variant: &str) -> Clip {
    let file = Checkpoint::open(official(variant)).unwrap();
    checkpoint::load(Clip::init(config, &Device::default(), 0), &file).unwrap()
}

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

#[test]
fn outputs_are_not_replaced_without_being_told() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.safetensors");
    fs::write(&output, "kept").unwrap();
    let plain = options("vit_tiny", Format::Safetensors);
    let error = convert(&official("vit_tiny"), &output, &plain).unwrap_err().to_string();
    assert!(error.contains("out.safetensors") && error.contains("--force"), "{error}");
    assert_eq!(fs::read_to_string(&output).unwrap(), "kept");
    let force = ConvertOptions { force: true, ..plain };
    convert(&official("vit_tiny"), &output, &force).unwrap();
    check_same(&official("vit_tiny"), &output);
    let error = convert(&output, &output, &force).unwrap_err().to_string();
    assert!(error.contains("is the input"), "{error}");
    let error = convert(&official("vit_tiny"), dir.path(), &force).unwrap_err().to_string();
    assert!(error.contains("is a folder"), "{error}");
    let folder = options("vit_tiny", Format::HuggingFace);
    let error = convert(&official("vit_tiny"), &output, &folder).unwrap_err().to_string();
    assert!(error.contains("is a file"), "{error}");
    let nowhere = dir.path().join("none/out.pt");
    let error = convert(&official("vit_tiny"), &nowhere, &options("vit_tiny", Format::Official));
    assert!(error.unwrap_err().to_string().contains("none/out.pt"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn progress_ends_at_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    for format in [Format::Official, Format::Safetensors, Format::Burn, Format::HuggingFace] {
        let (last, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let seen = (last.clone(), total.clone());
        let options = ConvertOptions {
            progress: Some(Arc::new(move |done, of| {
                assert!(done > seen.0.load(Ordering::Relaxed) && done <= of);
                seen.0.store(done, Ordering::Relaxed);
                seen.1.store(of, Ordering::Relaxed);
            })),
            ..options("vit_tiny", format)
        };
        let path = dir.path().join(format.to_string());
        let converted = convert(&official("vit_tiny"), &path, &options).unwrap();
        assert_eq!(last.load(Ordering::Relaxed), converted.bytes, "{format}");
        assert_eq!(total.load(Ordering::Relaxed), converted.bytes, "{format}");
    }
}

#[test]
fn forms_are_named_and_told_by_extensions() {
    for name in ["burn", "safetensors", "huggingface", "official"] {
        assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
    }
    assert!("onnx".parse::<Format>().is_err() && "fp8".parse::<Dtype>().is_err());
    let of = |name: &str| Format::of_path(Path::new(name));
    assert_eq!(of("a.bpk"), Some(Format::Burn));
    assert_eq!(of("a/b.pt"), Some(Format::Official));
    assert_eq!(of("x.safetensors"), Some(Format::Safetensors));
    assert_eq!(of("."), Some(Format::HuggingFace));
    assert_eq!(of("x.onnx"), None);
}
