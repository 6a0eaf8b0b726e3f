//! Towers, loading and parameter counts against the recordings of the Python program.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

#[path = "../../tests/support/towers.rs"]
mod towers;

use burn::tensor::{Device, Tensor};
use cn_clip_model::{
    Clip, ClipConfig, ImageTower, ModelError, Pass, Precision, TextConfig, VisionConfig,
    checkpoint::{self, Checkpoint, parameter_count, parameters},
    pos_embed,
};
use golden::{Golden, fixture};
use safetensors::SafeTensors;
use towers::{config_with, floats, input_on, load_on};

const TOLERANCE: f32 = 1e-4;

fn config(variant: &str) -> ClipConfig {
    config_with(variant, 0.1)
}

fn load(variant: &str) -> Clip {
    load_on(variant, &Device::default())
}

fn input<const D: usize>(golden: &Golden, name: &str) -> Tensor<D> {
    input_on(golden, name, &Device::default())
}

fn check_towers(variant: &str) {
    let device = Device::default();
    towers::forward(variant, &device, Precision::Fp32).check(TOLERANCE);
    towers::text_layers(variant, &device, Precision::Fp32).check(TOLERANCE);
    towers::image_layers(variant, &device, Precision::Fp32).check(TOLERANCE);
}

#[test]
fn vit_forward() {
    check_towers("vit_tiny");
}

#[test]
fn resnet_forward() {
    check_towers("rn_tiny");
}

#[test]
fn the_first_token_of_a_block_alone_is_that_of_the_whole_block() {
    let golden = Golden::open("model/vit_tiny/forward_eval.safetensors");
    let model = load("vit_tiny");
    let ImageTower::Vit(tower) = &model.visual else { panic!("not a ViT") };
    let mut x = tower.embed(input(&golden, "pixels"), None);
    for block in &tower.transformer.resblocks {
        let first = block.forward_first(x.clone());
        x = block.forward(x);
        let whole = floats(x.clone().slice_dim(1, 0..1));
        assert!(golden::relative_error(&floats(first), &whole) < 1e-5);
    }
}

#[test]
fn flip_selects_the_recorded_patches() {
    towers::masked_forward(&Device::default(), Precision::Fp32).check(TOLERANCE);
}

#[test]
fn keys_and_shapes_are_the_official_ones_in_order() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let path = fixture(&format!("model/{variant}/state_dict_keys.json"));
        let json: std::collections::BTreeMap<String, (Vec<usize>, String)> =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let file = fixture(&format!("model/{variant}/checkpoint_fp16.pt"));
        let order: Vec<String> =
            Checkpoint::open(file).unwrap().state_dict.into_iter().map(|(key, _)| key).collect();
        let specs = parameters(&Clip::init(&config(variant), &Device::default(), 0));
        let keys: Vec<String> = specs.iter().map(|spec| spec.key.clone()).collect();
        assert_eq!(keys, order);
        for spec in specs {
            let (shape, _) = &json[&format!("module.{}", spec.key)];
            assert_eq!(&spec.official_shape(), shape, "{}", spec.key);
        }
    }
}

#[test]
fn parameter_counts_are_the_official_ones() {
    let device = Device::default();
    let count = |vision: &str, text: &str, prefix: &str| {
        let config = ClipConfig::load(vision, text).unwrap();
        parameter_count(&Clip::init(&config, &device, 0), prefix)
    };
    const BASE: &str = "RoBERTa-wwm-ext-base-chinese";
    const LARGE: &str = "RoBERTa-wwm-ext-large-chinese";
    for (vision, expected) in [
        ("ViT-B-32", 87_849_216),
        ("ViT-B-16", 86_192_640),
        ("ViT-L-14", 303_966_208),
        ("ViT-L-14-336", 304_293_888),
        ("ViT-H-14", 632_076_800),
        ("RN50", 38_316_896),
    ] {
        assert_eq!(count(vision, "RBT3-chinese", "visual."), expected, "{vision}");
    }
    for (text, expected) in
        [("RBT3-chinese", 37_886_208), (BASE, 101_677_056), (LARGE, 324_472_832)]
    {
        assert_eq!(count("RN50", text, "bert."), expected, "{text}");
    }
    for (vision, text, expected) in [
        ("ViT-B-16", BASE, 188_262_913),
        ("ViT-L-14", BASE, 406_233_089),
        ("ViT-L-14-336", BASE, 406_560_769),
        ("ViT-H-14", LARGE, 957_598_209),
        ("RN50", "RBT3-chinese", 76_989_537),
    ] {
        assert_eq!(count(vision, text, ""), expected, "{vision} + {text}");
    }
}

#[test]
fn initial_weights_have_the_official_statistics() {
    let path = fixture("model/init_statistics.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = 0;
    for (variant, recorded) in json.as_object().unwrap() {
        let config = config(variant);
        let model = Clip::init(&config, &Device::default(), 1);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("init.pt");
        checkpoint::save(&file, &model, &Default::default(), None).unwrap();
        let ours = Checkpoint::open(&file).unwrap();
        for (key, statistics) in recorded.as_object().unwrap() {
            let statistics: Vec<serde_json::Value> =
                serde_json::from_value(statistics.clone()).unwrap();
            let number = |index: usize| statistics[index].as_f64().unwrap_or(0.0);
            let (mean, std) = (number(1), number(2));
            let Some(tensor) = ours.get(key) else { panic!("no {key}") };
            let values = tensor.read().unwrap();
            let count = values.len() as f64;
            let got_mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
            let variance = values.iter().map(|v| (f64::from(*v) - got_mean).powi(2)).sum::<f64>()
                / (count - 1.0).max(1.0);
            let got_std = variance.sqrt();
            // Five standard errors of the two samples.
            let slack = 5.0 * 2f64.sqrt() / count.sqrt();
            assert!((got_mean - mean).abs() <= slack * std + 1e-6, "{key}: mean {got_mean} {mean}");
            if count > 16.0 {
                assert!((got_std - std).abs() <= slack * std + 1e-6, "{key}: std {got_std} {std}");
            }
            let largest = number(3).abs().max(number(4).abs());
            let got_largest = values.iter().fold(0.0f64, |max, v| max.max(f64::from(v.abs())));
            if count > 256.0 {
                assert!(got_largest <= 2.0 * largest + 1e-9, "{key}: {got_largest} {largest}");
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn training_files_load_with_their_optimizer() {
    let packed = std::fs::File::open(fixture("train_run/epoch2_with_optimizer.pt.gz")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("epoch2.pt");
    let mut out = std::fs::File::create(&file).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!((checkpoint.progress.epoch, checkpoint.progress.step), (2, 8));
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("train_run/meta.json")).unwrap()).unwrap();
    let config: ClipConfig = serde_json::from_value(meta["model_config"].clone()).unwrap();
    let model = Clip::init(&config, &Device::default(), 0);
    let specs = parameters(&model);
    checkpoint::load(model, &checkpoint).unwrap();

    let optimizer = checkpoint.optimizer.unwrap();
    let keys = specs.iter().filter(|spec| !spec.buffer).map(|spec| spec.key.as_str());
    let order = checkpoint::reference_order(keys);
    assert_eq!(optimizer.group_sizes, [38, 33]);
    assert_eq!(optimizer.moments.len(), order.len());
    for (index, moments) in &optimizer.moments {
        let spec = specs.iter().find(|spec| spec.key == order[*index]).unwrap();
        assert_eq!(moments.first.shape, spec.official_shape(), "{}", spec.key);
        assert_eq!(moments.step, 8.0);
        assert!(moments.second.read().unwrap().iter().all(|value| *value >= 0.0));
    }
    let init = Checkpoint::open(fixture("train_run/init_fp16.pt")).unwrap();
    checkpoint::load(Clip::init(&config, &Device::default(), 0), &init).unwrap();
}

#[test]
fn a_saved_model_loads_with_the_same_values() {
    for variant in ["vit_tiny", "rn_tiny"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pt");
        let progress = checkpoint::Progress {
            epoch: 3,
            step: 1 << 40,
            name: "run".into(),
            epoch_pairs: Some(7),
            loss_scale: Some((1024, 5)),
        };
        let model = load(variant);
        checkpoint::save(&file, &model, &progress, None).unwrap();
        let saved = Checkpoint::open(&file).unwrap();
        assert_eq!(saved.progress, progress);
        let original =
            Checkpoint::open(fixture(&format!("model/{variant}/checkpoint_fp16.pt"))).unwrap();
        for (key, tensor) in &original.state_dict {
            let ours = saved.get(key).unwrap();
            assert_eq!(ours.shape, tensor.shape, "{key}");
            assert_eq!(ours.read().unwrap(), tensor.read().unwrap(), "{key}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}

#[test]
fn safetensors_load_like_the_official_file() {
    let original = Checkpoint::open(fixture("model/vit_tiny/checkpoint_fp16.pt")).unwrap();
    let values: Vec<(String, Vec<usize>, Vec<u8>)> = original
        .state_dict
        .iter()
        .map(|(key, tensor)| {
            let bytes = tensor.read().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
            (key.clone(), tensor.shape.clone(), bytes)
        })
        .collect();
    let views = values.iter().map(|(key, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (key.clone(), view.unwrap())
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weights.anything");
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    assert!(SafeTensors::deserialize(&std::fs::read(&file).unwrap()).is_ok());
    let golden = Golden::open("model/vit_tiny/forward_eval.safetensors");
    let model = Clip::init(&config("vit_tiny"), &Device::default(), 0);
    let model = checkpoint::load(model, &Checkpoint::open(&file).unwrap()).unwrap();
    let image = model.encode_image(input(&golden, "pixels"), None, Pass::Eval);
    golden.check("image_features", &floats(image), TOLERANCE);
}

#[test]
fn a_checkpoint_of_another_architecture_lists_every_difference() {
    let model = Clip::init(&config("vit_tiny"), &Device::default(), 0);
    let other = Checkpoint::open(fixture("model/rn_tiny/checkpoint_fp16.pt")).unwrap();
    let Err(ModelError::Mismatch { problems, .. }) = checkpoint::load(model, &other) else {
        panic!("it fits")
    };
    for hint in [
        "missing: visual.class_embedding [64]",
        "unexpected: visual.attnpool.positional_embedding",
        "wrong shape: text_projection is [16, 32], the model needs [32, 32]",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(hint)), "{hint}: {problems:#?}");
    }
}

#[test]
fn damaged_checkpoints_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("model/vit_tiny/checkpoint_fp16.pt")).unwrap();
    let file = dir.path().join("x.pt");
    let open = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Checkpoint::open(&file).unwrap_err().to_string()
    };
    assert!(open(b"").contains("not a checkpoint"));
    assert!(open(b"hello, this is text").contains("not a checkpoint"));
    assert!(open(&whole[..whole.len() / 2]).contains("truncated"));
    assert!(Checkpoint::open(dir.path()).is_err());
    assert!(
        Checkpoint::open(dir.path().join("none.pt")).unwrap_err().to_string().contains("none.pt")
    );
    // Damage in the middle must never panic.
    for at in (0..whole.len()).step_by(9973) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&file, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&file) {
            checkpoint.state_dict.iter().for_each(|(_, tensor)| drop(tensor.read()));
        }
    }
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("none").join("a.pt");
    let model = Clip::init(&config("vit_tiny"), &Device::default(), 0);
    let error = checkpoint::save(&file, &model, &Default::default(), None).unwrap_err();
    assert!(error.to_string().contains("a.pt"), "{error}");
}

#[test]
fn merged_json_serves_both_towers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.json");
    std::fs::write(&file, serde_json::to_string(&config("vit_tiny")).unwrap()).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(VisionConfig::load(path).unwrap(), config("vit_tiny").vision);
    assert_eq!(TextConfig::load(path).unwrap(), config("vit_tiny").text);
}

#[test]
fn positional_embeddings_are_resized_as_recorded() {
    let golden = Golden::open("model/vit_tiny/pos_embed_resize.safetensors");
    let input = golden.get("pos_in");
    let old = pos_embed::grid_of(input.shape[0]).unwrap();
    for new in [3, 5, 7, 8] {
        let resized = pos_embed::resize(&input.values, input.shape[1], old, new);
        golden.check(&format!("pos_grid{new}"), &resized, 1e-6);
    }
}

#[test]
fn a_checkpoint_of_another_resolution_loads_with_a_resized_grid() {
    for (variant, resolution) in [("vit_tiny", 56), ("rn_tiny", 96)] {
        let mut config = config(variant);
        let old = config.vision.grid();
        config.vision.image_resolution = resolution;
        let file = Checkpoint::open(fixture(&format!("model/{variant}/checkpoint_fp16.pt")));
        let file = file.unwrap();
        let model = Clip::init(&config, &Device::default(), 0);
        let grids = (old, config.vision.grid());
        assert_eq!(checkpoint::resized_grid(&model, &file), Some(grids));
        let model = checkpoint::load(model, &file).unwrap();
        let pixels = Tensor::ones([1, 3, resolution, resolution], &Device::default());
        let features = floats(model.encode_image(pixels, None, Pass::Eval));
        assert!(features.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn a_part_of_a_checkpoint_replaces_only_that_part() {
    let config = config("vit_tiny");
    let file = Checkpoint::open(fixture("model/vit_tiny/checkpoint_fp16.pt")).unwrap();
    let model = Clip::init(&config, &Device::default(), 5);
    let fresh = floats(model.text_projection.val());
    let model = checkpoint::load_part(model, &file, |key| key.starts_with("visual.")).unwrap();
    assert_eq!(floats(model.text_projection.val()), fresh);
    let ImageTower::Vit(tower) = &model.visual else { panic!("a ViT") };
    let saved = file.get("visual.proj").unwrap().read().unwrap();
    assert_eq!(floats(tower.proj.val()), saved);
    // Of another architecture: an error that lists what does not fit.
    let other = Checkpoint::open(fixture("model/rn_tiny/checkpoint_fp16.pt")).unwrap();
    let model = Clip::init(&config, &Device::default(), 5);
    let error = checkpoint::load_part(model, &other, |key| key.starts_with("visual."));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("missing: visual.class_embedding"), "{error}");
    assert!(!error.contains("unexpected"), "{error}");
}
