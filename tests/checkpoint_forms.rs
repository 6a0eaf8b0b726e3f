//! Weights of every form, in every command that takes a checkpoint.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{
    fs,
    path::{Path, PathBuf},
};

use cn_clip::model::{
    ClipConfig,
    checkpoint::{Checkpoint, ConvertOptions, Format, convert},
};
use golden::{Golden, fixture, norm_error, without_gradient};
use run::succeed;
use tiny::{flag, tiny_model, towers, train, weights};

fn config(directory: &Path) -> ClipConfig {
    serde_json::from_slice(&fs::read(tiny_model(directory)).unwrap()).unwrap()
}

/// The recorded weights in each form.
fn forms(directory: &Path) -> Vec<PathBuf> {
    let mut files = vec![weights()];
    for format in [Format::Official, Format::Safetensors, Format::Burn, Format::HuggingFace] {
        let path = directory.join(format!("weights-{format}"));
        let options =
            ConvertOptions { config: Some(config(directory)), ..ConvertOptions::new(format) };
        convert(&weights(), &path, &options).unwrap();
        files.push(path);
    }
    files
}

/// What `cn-clip similarity` prints.
fn similarity(checkpoint: &Path, towers: &[String]) -> String {
    let picture = fixture("preprocess/03_scene.jpg").display().to_string();
    let mut args = vec!["similarity".to_string(), picture, flag("checkpoint", checkpoint)];
    args.extend(["--text=一只猫".to_string(), "--text=山".to_string()]);
    args.extend_from_slice(towers);
    let output = run::run(args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn extract(directory: &Path, checkpoint: &Path, towers: &[String]) -> String {
    let output = directory.join("features.jsonl");
    let mut args = vec![
        "extract-features".to_string(),
        "--extract-image-feats".to_string(),
        flag("image-data", &fixture("dataset/lmdb/valid/imgs")),
        flag("image-feat-output-path", &output),
        flag("resume", checkpoint),
    ];
    args.extend_from_slice(towers);
    succeed(args);
    fs::read_to_string(output).unwrap()
}

#[test]
fn every_form_gives_the_same_results_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let forms = forms(dir.path());
    let towers = towers(dir.path());
    let expected = (similarity(&forms[0], &towers), extract(dir.path(), &forms[0], &towers));
    let mut ends: Vec<Vec<(String, Vec<f32>)>> = Vec::new();
    for (index, form) in forms.iter().enumerate() {
        let found = (similarity(form, &towers), extract(dir.path(), form, &towers));
        assert_eq!(found, expected, "{}", form.display());
        let (resumed, begun) = (format!("--name=resumed{index}"), format!("--name=begun{index}"));
        let resume = flag("resume", form);
        let more =
            [&*resumed, "--max-steps=1", &resume, "--reset-optimizer", "--reset-data-offset"];
        succeed(train(dir.path(), &more));
        let (clip, bert) = (flag("clip-weight-path", form), flag("bert-weight-path", form));
        succeed(train(dir.path(), &[&begun, "--max-steps=1", &clip, &bert]));
        for run in ["resumed", "begun"] {
            let path = dir.path().join(format!("{run}{index}/checkpoints/epoch_latest.pt"));
            let checkpoint = Checkpoint::open(path).unwrap();
            let read = |(key, tensor): &(String, cn_clip::model::checkpoint::LazyTensor)| {
                (key.clone(), tensor.read().unwrap())
            };
            ends.push(checkpoint.state_dict.iter().map(read).collect());
        }
    }
    for pair in ends.chunks(2) {
        assert!(pair[0] == ends[0] && pair[1] == ends[1]);
    }
}

#[test]
fn another_resolution_is_resized_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let mut larger = config(dir.path());
    larger.vision.image_resolution = 48;
    let path = dir.path().join("larger.json");
    fs::write(&path, serde_json::to_string(&larger).unwrap()).unwrap();
    let towers = [flag("vision-model", &path), flag("text-model", &path)];
    let converted = dir.path().join("larger.bpk");
    let options = ConvertOptions { config: Some(larger), ..ConvertOptions::new(Format::Burn) };
    convert(&weights(), &converted, &options).unwrap();
    let position = |file: &Path| {
        let file = Checkpoint::open(file).unwrap();
        file.get("visual.positional_embedding").unwrap().shape.clone()
    };
    assert_eq!((position(&weights()), position(&converted)), (vec![17, 32], vec![37, 32]));
    let of = |checkpoint: &Path| {
        (similarity(checkpoint, &towers), extract(dir.path(), checkpoint, &towers))
    };
    assert_eq!(of(&weights()), of(&converted));
}

#[test]
fn a_training_file_that_went_through_conversion_continues_to_the_recorded_third_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let packed = fs::File::open(fixture("train_run/epoch2_with_optimizer.pt.gz")).unwrap();
    let (theirs, ours) = (dir.path().join("epoch2.pt"), dir.path().join("ours.pt"));
    let mut out = fs::File::create(&theirs).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut out).unwrap();
    let options = ConvertOptions {
        config: Some(config(dir.path())),
        ..ConvertOptions::new(Format::Official)
    };
    assert!(!convert(&theirs, &ours, &options).unwrap().optimizer_left_out);
    for (name, file) in [("theirs", &theirs), ("ours", &ours)] {
        let (name, resume) = (format!("--name={name}"), flag("resume", file));
        succeed(train(dir.path(), &[&name, &resume, "--max-epochs=3"]));
    }
    let end = |name: &str| {
        Checkpoint::open(dir.path().join(name).join("checkpoints/epoch_latest.pt")).unwrap()
    };
    let (theirs, ours) = (end("theirs"), end("ours"));
    let golden = Golden::open("train_run/run_final.safetensors");
    let mut compared = 0;
    for (key, tensor) in &ours.state_dict {
        let values = tensor.read().unwrap();
        assert!(values == theirs.get(key).unwrap().read().unwrap(), "{key}");
        let found = [format!("module.{key}"), key.clone()];
        let found = found.iter().find_map(|name| golden.cut(name, &values));
        let Some((mut got, mut expected)) = found else { continue };
        let noise = without_gradient(key, got.len());
        got.drain(noise.clone());
        expected.drain(noise);
        assert!(got.is_empty() || norm_error(&got, &expected) <= 1e-3, "{key}");
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}
