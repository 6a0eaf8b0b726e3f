//! Every form of a checkpoint becomes every other one and gives the recorded features.

#![allow(clippy::unwrap_used)]

#[path = "support/forms.rs"]
mod forms;
#[path = "../../tests/support/golden.rs"]
mod golden;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::{module::Module, tensor::Device};
use burn_store::{BurnpackStore, ModuleSnapshot};
use cn_clip_model::{
    Clip, ClipConfig,
    checkpoint::{
        self, Checkpoint, ConvertOptions, Dtype, ElementType, Format, convert, detect_config,
    },
};
use forms::{check_features, check_same, config, load, official, options, to};
use golden::fixture;

const VARIANTS: [&str; 2] = ["vit_tiny", "rn_tiny"];

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
