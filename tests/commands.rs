//! Extraction, similarity, tokenizing, preprocessing and building of data sets by the binary.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{collections::BTreeMap, fs, path::Path};

use cn_clip_model::checkpoint::Checkpoint;
use golden::{Golden, fixture};
use run::{run, succeed};
use serde_json::Value;
use tiny::{flag, towers, weights};

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn features(path: &Path, key: &str) -> BTreeMap<i64, Vec<f32>> {
    let row = |line: &Value| {
        let values = serde_json::from_value(line["feature"].clone()).unwrap();
        (line[key].as_i64().unwrap(), values)
    };
    json_lines(path).iter().map(row).collect()
}

fn extract(directory: &Path) {
    extract_from(directory, &fixture("dataset/lmdb/valid/imgs"));
}

fn extract_from(directory: &Path, images: &Path) {
    let mut args = vec![
        "extract-features".to_string(),
        "--extract-image-feats".to_string(),
        "--extract-text-feats".to_string(),
        flag("image-data", images),
        flag("text-data", &fixture("dataset/valid_texts.jsonl")),
        flag("image-feat-output-path", &directory.join("images.jsonl")),
        flag("text-feat-output-path", &directory.join("texts.jsonl")),
        flag("resume", &weights()),
        "--context-length=24".to_string(),
        "--img-batch-size=2".to_string(),
        "--text-batch-size=4".to_string(),
    ];
    args.extend(towers(directory));
    succeed(args);
}

#[test]
fn extracted_features_are_those_recorded() {
    let directory = tempfile::tempdir().unwrap();
    extract(directory.path());
    for (file, recorded, key) in [
        ("images.jsonl", "extract/valid_imgs.img_feat.jsonl", "image_id"),
        ("texts.jsonl", "extract/valid_texts.txt_feat.jsonl", "text_id"),
    ] {
        let ours = features(&directory.path().join(file), key);
        let expected = features(&fixture(recorded), key);
        assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (id, expected) in expected {
            let worst =
                ours[&id].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{key} {id}: {worst}");
        }
    }
}

#[test]
fn similarity_is_the_softmax_of_scaled_cosines() {
    let directory = tempfile::tempdir().unwrap();
    extract(directory.path());
    let images = features(&directory.path().join("images.jsonl"), "image_id");
    let texts = features(&directory.path().join("texts.jsonl"), "text_id");
    let lines = json_lines(&fixture("dataset/valid_texts.jsonl"));
    // The pictures of the data set, as files.
    let mut files = Vec::new();
    for line in fs::read_to_string(fixture("dataset/valid_imgs.tsv")).unwrap().lines() {
        let (id, data) = line.split_once('\t').unwrap();
        let path = directory.path().join(format!("{id}.img"));
        fs::write(&path, base64_decode(data)).unwrap();
        files.push((id.parse::<i64>().unwrap(), path));
    }
    let mut args = vec!["similarity".to_string(), format!("--checkpoint={}", weights().display())];
    args.extend(towers(directory.path()));
    args.extend(files.iter().map(|(_, path)| path.display().to_string()));
    // Texts without capitals: data sets are lower-cased before they are tokenized, these are not.
    let chosen: Vec<&Value> = lines
        .iter()
        .filter(|line| {
            let text = line["text"].as_str().unwrap();
            text.to_lowercase() == text && !text.contains(['“', '”']) && !text.starts_with('-')
        })
        .take(3)
        .collect();
    assert!(chosen.len() >= 2);
    args.extend(chosen.iter().map(|line| format!("--text={}", line["text"].as_str().unwrap())));
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: Vec<f64> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split("  ").next()?.parse().ok())
        .collect();
    assert_eq!(printed.len(), files.len() * chosen.len());
    let checkpoint = Checkpoint::open(weights()).unwrap();
    let scale = f64::from(checkpoint.get("logit_scale").unwrap().read().unwrap()[0]).exp();
    for ((id, path), row) in files.iter().zip(printed.chunks(chosen.len())) {
        let logits: Vec<f64> = chosen
            .iter()
            .map(|line| {
                let text = &texts[&line["text_id"].as_i64().unwrap()];
                let dot: f64 = text.iter().zip(&images[id]).map(|(a, b)| f64::from(a * b)).sum();
                (dot * scale).exp()
            })
            .collect();
        let sum: f64 = logits.iter().sum();
        for (got, logit) in row.iter().zip(&logits) {
            assert!((got - logit / sum).abs() < 1e-4, "{}: {got} {}", path.display(), logit / sum);
        }
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5);
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE
        .decode(text)
        .or_else(|_| base64::prelude::BASE64_STANDARD.decode(text))
        .unwrap()
}

#[test]
fn tokenize_writes_the_recorded_ids() {
    let directory = tempfile::tempdir().unwrap();
    let recorded = json_lines(&fixture("tokenizer.jsonl"));
    let input = directory.path().join("in.jsonl");
    let lines: String = recorded
        .iter()
        .map(|line| format!("{}\n", serde_json::json!({ "text": line["text"] })))
        .collect();
    fs::write(&input, lines).unwrap();
    let input = format!("--input={}", input.display());
    for (flags, key) in [
        (vec![], "ids52"),
        (vec!["--context-length=24"], "ids24"),
        (vec!["--dataset"], "dataset_ids52"),
    ] {
        let output = run([vec!["tokenize", &input], flags].concat());
        assert_eq!(output.status.code(), Some(0));
        let ours = String::from_utf8(output.stdout).unwrap();
        assert_eq!(ours.lines().count(), recorded.len());
        for (line, expected) in ours.lines().zip(&recorded) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["ids"], expected[key], "{line}");
            assert_eq!(line["text"], expected["text"]);
        }
    }
}

#[test]
fn preprocess_writes_the_recorded_pixels() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("x.safetensors");
    let golden = Golden::open("preprocess/expected.safetensors");
    for name in ["01_gradient_rgb.png", "04_rgba.png", "07_cmyk.jpg", "12_progressive_420.jpg"] {
        let image = fixture(&format!("preprocess/{name}")).display().to_string();
        let to = format!("--output={}", output.display());
        succeed(["preprocess", &image, "--resolution=32", &to]);
        let bytes = fs::read(&output).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let pixels = file.tensor("pixels").unwrap();
        assert_eq!(pixels.shape(), [3, 32, 32]);
        let values: Vec<f32> =
            pixels.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        golden.check(&format!("{name}@32"), &values, 1e-6);
    }
}

#[test]
fn a_built_data_set_can_be_extracted_and_trained_on() {
    let directory = tempfile::tempdir().unwrap();
    let lmdb = directory.path().join("lmdb");
    let log = succeed([
        "build-lmdb-dataset",
        &format!("--data-dir={}", fixture("dataset").display()),
        "--splits=train,valid,test",
        &format!("--lmdb-dir={}", lmdb.display()),
    ]);
    for line in ["train: 10 pictures", "valid: ", "test: "] {
        assert!(log.contains(line), "{log}");
    }
    // The pictures are those of the data set that the Python program built.
    let (theirs, ours) = (directory.path().join("theirs"), directory.path().join("ours"));
    fs::create_dir(&theirs).unwrap();
    fs::create_dir(&ours).unwrap();
    extract(&theirs);
    extract_from(&ours, &lmdb.join("valid/imgs"));
    let features = |directory: &Path| fs::read(directory.join("images.jsonl")).unwrap();
    assert!(features(&ours) == features(&theirs));
    let mut args = tiny::train(directory.path(), &["--name=own", "--max-steps=1"]);
    args[1] = format!("--train-data={}", lmdb.join("train").display());
    let log = succeed(args);
    assert!(log.contains("Global Steps: 1/1"), "{log}");
}
