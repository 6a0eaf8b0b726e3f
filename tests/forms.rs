//! Data sets in other forms than one LMDB.

#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/run.rs"]
mod run;
#[path = "support/tiny.rs"]
mod tiny;

use std::{fs, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use cn_clip::model::checkpoint::Checkpoint;
use golden::fixture;
use run::{fail, succeed};

/// Cuts the recorded training split into a form.
fn shard(directory: &Path, form: &str, more: &[&str]) {
    let input = tiny::flag("input", &fixture("dataset/lmdb/train"));
    let output = tiny::flag("output", &directory.join(form));
    let form = format!("--to={form}");
    succeed([&["shard", &*input, &*output, &*form][..], more].concat());
}

/// Weights and moments at the end of a run.
type State = (Vec<(String, Vec<f32>)>, Vec<Vec<f32>>);

/// Trains on data.
fn train(directory: &Path, name: &str, data: &str, more: &[&str]) -> State {
    let mut args = tiny::train(directory, more);
    args.retain(|arg| !arg.starts_with("--train-data"));
    args.extend([format!("--train-data={data}"), format!("--name={name}")]);
    succeed(args);
    let path = directory.join(name).join("checkpoints/epoch_latest.pt");
    let checkpoint = Checkpoint::open(path).unwrap();
    let weights = checkpoint.state_dict.iter();
    let weights = weights.map(|(key, tensor)| (key.clone(), tensor.read().unwrap())).collect();
    let optimizer = checkpoint.optimizer.unwrap();
    let mut moments: Vec<_> = optimizer.moments.iter().collect();
    moments.sort_by_key(|(index, _)| *index);
    let moments = moments.into_iter();
    (weights, moments.map(|(_, moments)| moments.first.read().unwrap()).collect())
}

#[test]
fn forms_with_random_access_are_the_same_run() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    shard(directory, "texts", &[]);
    shard(directory, "lmdb", &[]);
    let lmdb = fixture("dataset/lmdb/train").display().to_string();
    let texts = directory.join("texts/train_texts.jsonl").display().to_string();
    let again = directory.join("lmdb/train").display().to_string();
    let expected = train(directory, "a", &lmdb, &["--max-steps=6"]);
    assert!(train(directory, "b", &texts, &["--max-steps=6"]) == expected);
    assert!(train(directory, "c", &again, &["--max-steps=6"]) == expected);
    // Two splits together hold all their pairs, and a picture may count once.
    let valid = fixture("dataset/lmdb/valid").display().to_string();
    let both = format!("{lmdb},{valid}");
    train(directory, "d", &both, &["--max-epochs=1"]);
    train(directory, "e", &both, &["--max-epochs=1", "--one-caption-per-image"]);
    let steps = |name: &str| {
        let metrics = fs::read_to_string(directory.join(name).join("metrics.jsonl")).unwrap();
        metrics.lines().filter(|line| line.contains("\"train\"")).count()
    };
    // 20 pairs of 11 pictures, 4 in a step.
    assert_eq!((steps("d"), steps("e")), (5, 3));
}

#[test]
fn a_run_on_shards_continues_in_the_middle_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for form in ["tar", "parquet"] {
        shard(directory, form, &["--samples=5"]);
        let glob = directory.join(form).join(format!("*.{form}")).display().to_string();
        let flags = ["--shuffle-buffer=3", "--save-step-frequency=3"];
        let whole = [&flags[..], &["--max-steps=10"]].concat();
        let expected = train(directory, &format!("{form}-whole"), &glob, &whole);
        let again = train(directory, &format!("{form}-again"), &glob, &whole);
        assert!(again == expected, "{form}: the same seed is the same run");
        // From step 3 of 10, in mid-epoch, on one device and on two.
        let middle = directory.join(format!("{form}-whole/checkpoints/epoch_1_3.pt"));
        let resume = tiny::flag("resume", &middle);
        let continued = [&whole[..], &[&*resume]].concat();
        let continued = train(directory, &format!("{form}-go"), &glob, &continued);
        assert!(continued == expected, "{form}");
        let two = [&whole[..], &["--devices=cpu,cpu"]].concat();
        let two = train(directory, &format!("{form}-two"), &glob, &two);
        assert_eq!(two.0.len(), expected.0.len());
    }
}

#[test]
fn what_cannot_be_read_names_flag_and_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let run = |data: &str, more: &[&str]| {
        let mut args = tiny::train(path, more);
        args.retain(|arg| !arg.starts_with("--train-data"));
        args.push(format!("--train-data={data}"));
        fail(args, 1)
    };
    let missing = path.join("none-{00..03}.tar").display().to_string();
    let error = run(&missing, &[]);
    assert!(error.contains("--train-data") && error.contains("none-00.tar"), "{error}");
    shard(path, "tar", &["--samples=5"]);
    let glob = path.join("tar/*.tar").display().to_string();
    let error = run(&glob, &["--exclusive-batches"]);
    assert!(error.contains("--exclusive-batches"), "{error}");
    // A shard that is cut off.
    let shards: Vec<_> =
        fs::read_dir(path.join("tar")).unwrap().map(|e| e.unwrap().path()).collect();
    let shard = shards.iter().find(|path| path.extension().is_some_and(|e| e == "tar")).unwrap();
    let bytes = fs::read(shard).unwrap();
    fs::write(shard, &bytes[..bytes.len() / 2]).unwrap();
    let error = run(&glob, &["--max-epochs=2"]);
    assert!(error.contains(&shard.display().to_string()), "{error}");
    // Nothing is written over.
    let input = tiny::flag("input", &fixture("dataset/lmdb/train"));
    let output = tiny::flag("output", &path.join("tar"));
    let error = fail(["shard", &input, &output], 1);
    assert!(error.contains("is there already"), "{error}");
}

#[test]
fn ranks_validate_on_as_many_pairs_where_pictures_of_a_stream_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let picture = fs::read(fixture("preprocess/03_scene.jpg")).unwrap();
    let (mut tsv, mut jsonl) = (String::new(), String::new());
    for id in 0..8 {
        let bytes = if id == 5 { &picture[..300] } else { &picture[..] };
        tsv.push_str(&format!("{id}\t{}\n", BASE64_STANDARD.encode(bytes)));
        let line = serde_json::json!({"text_id": id, "text": format!("图{id}"), "image_ids": [id]});
        jsonl.push_str(&format!("{line}\n"));
    }
    fs::write(path.join("valid_imgs.tsv"), tsv).unwrap();
    fs::write(path.join("valid_texts.jsonl"), jsonl).unwrap();
    let input = tiny::flag("input", &path.join("valid_texts.jsonl"));
    succeed(["shard", &input, &tiny::flag("output", &path.join("tar")), "--samples=4"]);
    let more = ["--max-steps=2", "--valid-recall", "--skip-bad-images", "--batch-size=2"];
    let mut args = tiny::train(path, &[&more[..], &["--devices=cpu,cpu"]].concat());
    args.retain(|arg| !arg.starts_with("--val-data"));
    args.push(tiny::flag("val-data", &path.join("tar/*.tar")));
    let log = succeed(args);
    assert!(log.contains("Validation Recall"), "{log}");
}
