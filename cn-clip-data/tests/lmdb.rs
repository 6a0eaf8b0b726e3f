//! LMDB data sets: those of the Python program, ours, and damaged ones; and the loader over them.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use cn_clip_data::{
    DataError, Id, Pair,
    image::ImageTransform,
    lmdb::{BuildOptions, LmdbDataset, LmdbImages, SplitSummary, build_lmdb_dataset},
    loader::{Loader, LoaderOptions},
    source::{MemoryDataset, PairSource},
    tokenizer::{Tokenizer, dataset_text},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn contents() -> serde_json::Value {
    let file = fixture("dataset/lmdb_contents.json");
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Compares a split with what was recorded of the Python program's.
fn check_split(path: &Path, split: &str) {
    let recorded = &contents()[split];
    let data = LmdbDataset::open(path).unwrap();
    let mut pairs = 0;
    for entry in recorded["pairs"].as_array().unwrap() {
        let key = entry[0].as_str().unwrap();
        let Ok(index) = key.parse::<usize>() else {
            assert_eq!(entry[1].as_str().unwrap().parse::<usize>().unwrap(), data.len());
            continue;
        };
        let (image_id, text_id, text): (Id, Id, String) =
            serde_json::from_value(entry[1].clone()).unwrap();
        assert_eq!(data.pair(index).unwrap(), Pair { image_id, text_id, text });
        pairs += 1;
    }
    assert_eq!(pairs, data.len());
    let keys: Vec<&str> =
        recorded["imgs"].as_array().unwrap().iter().map(|e| e[0].as_str().unwrap()).collect();
    let ids: Vec<String> = data.images().ids().unwrap().iter().map(|id| id.to_string()).collect();
    let expected: Vec<&str> = keys.into_iter().filter(|key| *key != "num_images").collect();
    assert_eq!(ids, expected);
    assert_eq!(data.num_images(), ids.len());
    for id in data.images().ids().unwrap() {
        assert!(data.images().image(&id).unwrap().len() > 100);
    }
}

fn build(
    data_dir: &Path,
    splits: &[&str],
    lmdb_dir: &Path,
) -> Result<Vec<SplitSummary>, DataError> {
    build_lmdb_dataset(&BuildOptions {
        data_dir: data_dir.to_path_buf(),
        splits: splits.iter().map(|split| split.to_string()).collect(),
        lmdb_dir: Some(lmdb_dir.to_path_buf()),
        progress: false,
    })
}

#[test]
fn databases_of_the_python_program_are_read() {
    for split in ["train", "valid", "test"] {
        check_split(&fixture("dataset/lmdb").join(split), split);
    }
}

#[test]
fn ours_have_the_same_contents_and_replace_older_ones() {
    let out = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let splits = ["train", "valid", "test"];
        let summary = build(&fixture("dataset"), &splits, out.path()).unwrap();
        assert_eq!((summary[0].images, summary[0].pairs), (10, 13));
        for split in splits {
            check_split(&out.path().join(split), split);
        }
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3, "nothing else is left");
    }
    let size = fs::metadata(out.path().join("train/imgs/data.mdb")).unwrap().len();
    assert!(size <= fs::metadata(fixture("dataset/lmdb/train/imgs/data.mdb")).unwrap().len());
}

#[test]
fn the_map_grows_with_the_data() {
    let (input, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = "QUJD".repeat(1 << 16);
    let tsv: String = (0..400).map(|id| format!("{id}\t{image}\n")).collect();
    fs::write(input.path().join("big_imgs.tsv"), tsv).unwrap();
    let texts: String = (0..400)
        .map(|id| format!("{{\"text_id\": {id}, \"text\": \"a\", \"image_ids\": [{id}]}}\n"))
        .collect();
    fs::write(input.path().join("big_texts.jsonl"), texts).unwrap();
    build(input.path(), &["big"], out.path()).unwrap();
    let data = LmdbDataset::open(out.path().join("big")).unwrap();
    assert_eq!((data.len(), data.num_images()), (400, 400));
    assert_eq!(data.images().image(&Id::Int(399)).unwrap().len(), 3 << 16);
}

#[test]
fn malformed_input_is_an_error_with_file_and_line() {
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("dataset/malformed_cases.json")).unwrap())
            .unwrap();
    let expected = [
        ("no_tab", "x_imgs.tsv:1"),
        ("two_tabs", "x_imgs.tsv:1"),
        ("blank_line", "x_imgs.tsv:2"),
        ("dup_image_id", "x_imgs.tsv:2"),
        ("missing_field", "x_texts.jsonl:1"),
        ("blank_json_line", "x_texts.jsonl:2"),
        ("dangling_image", "x_texts.jsonl:1"),
        ("text_not_string", "x_texts.jsonl:1"),
        // Names pictures that are not there, and a number beyond 64 bits.
        ("long_text", "x_texts.jsonl:1"),
        ("empty", "x_imgs.tsv"),
    ];
    let as_pairs: Vec<(String, serde_json::Value)> = match cases {
        serde_json::Value::Object(map) => map.into_iter().collect(),
        list => serde_json::from_value(list).unwrap(),
    };
    assert_eq!(as_pairs.len(), expected.len() + 2, "string_ids and bom are fine");
    for (name, case) in as_pairs {
        let (input, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(input.path().join("x_imgs.tsv"), case["tsv"].as_str().unwrap()).unwrap();
        fs::write(input.path().join("x_texts.jsonl"), case["texts"].as_str().unwrap()).unwrap();
        let built = build(input.path(), &["x"], out.path());
        match expected.iter().find(|(case, _)| *case == name) {
            Some((_, place)) => {
                let error = built.unwrap_err().to_string();
                assert!(error.contains(place), "{name}: {error}");
                assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{name} leaves nothing");
            }
            None => {
                let data =
                    LmdbDataset::open(&built.unwrap_or_else(|e| panic!("{name}: {e}"))[0].path)
                        .unwrap();
                let pair = data.pair(0).unwrap();
                assert_eq!(data.images().image(&pair.image_id).unwrap(), b"ABC", "{name}");
            }
        }
    }
}

#[test]
fn a_failed_build_keeps_the_database_there_was() {
    let (input, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |tsv: &str, texts: &str| {
        fs::write(input.path().join("x_imgs.tsv"), tsv).unwrap();
        fs::write(input.path().join("x_texts.jsonl"), texts).unwrap();
    };
    write("1\tQUJD\n", "{\"text_id\": 1, \"text\": \"a\", \"image_ids\": [1]}\n");
    build(input.path(), &["x"], out.path()).unwrap();
    write("1\tQUJD\n2\n", "{\"text_id\": 1, \"text\": \"a\", \"image_ids\": [1]}\n");
    build(input.path(), &["x"], out.path()).unwrap_err();
    fs::remove_file(input.path().join("x_imgs.tsv")).unwrap();
    build(input.path(), &["x"], out.path()).unwrap_err();
    let data = LmdbDataset::open(out.path().join("x")).unwrap();
    assert_eq!((data.len(), data.num_images()), (1, 1));
    for split in ["", "../x", ".x"] {
        assert!(build(input.path(), &[split], out.path()).is_err(), "{split:?}");
    }
}

#[test]
fn damaged_databases_are_errors() {
    let error = |path: &Path| LmdbDataset::open(path).map(|_| ()).unwrap_err().to_string();
    let out = tempfile::tempdir().unwrap();
    assert!(error(&out.path().join("none")).contains("build-lmdb-dataset"));
    let copy = |keep: usize| {
        for part in ["imgs", "pairs"] {
            fs::create_dir_all(out.path().join(part)).unwrap();
            let from = fixture("dataset/lmdb/train").join(part).join("data.mdb");
            let bytes = fs::read(from).unwrap();
            fs::write(out.path().join(part).join("data.mdb"), &bytes[..keep.min(bytes.len())])
                .unwrap();
        }
    };
    for keep in [0, 10, 100, 4096, 5000, 8192, 12000] {
        copy(keep);
        let error = error(out.path());
        assert!(error.contains("data.mdb") || error.contains("imgs"), "{keep}: {error}");
    }
    fs::write(out.path().join("pairs/data.mdb"), vec![7; 65536]).unwrap();
    assert!(error(out.path()).contains("not an LMDB file"));
    let missing = LmdbImages::open(fixture("dataset/lmdb/train/imgs")).unwrap();
    let error = missing.image(&Id::Int(-5)).unwrap_err().to_string();
    assert!(error.contains("image -5"), "{error}");
}

#[test]
fn many_threads_read_at_once() {
    let data = LmdbDataset::open(fixture("dataset/lmdb/train")).unwrap();
    let again = LmdbDataset::open(fixture("dataset/lmdb/train")).unwrap();
    thread::scope(|scope| {
        for data in [&data, &again, &data, &again] {
            scope.spawn(move || {
                for round in 0..500 {
                    let pair = data.pair(round % data.len()).unwrap();
                    assert!(!data.images().image(&pair.image_id).unwrap().is_empty());
                }
            });
        }
    });
}

fn batches(
    source: Arc<dyn PairSource>,
    order: Vec<usize>,
    options: LoaderOptions,
) -> Vec<Result<cn_clip_data::loader::Batch, DataError>> {
    Loader::new(source, Arc::new(ImageTransform::new(16)), order, options).unwrap().collect()
}

#[test]
fn batches_are_the_same_whatever_the_number_of_threads() {
    let data: Arc<dyn PairSource> =
        Arc::new(LmdbDataset::open(fixture("dataset/lmdb/train")).unwrap());
    let order = vec![3, 1, 4, 1, 5, 9, 2, 6];
    let run = |workers: usize| {
        let options =
            LoaderOptions { batch_size: 3, context_length: 12, workers, ..Default::default() };
        let batches = batches(data.clone(), order.clone(), options);
        batches.into_iter().map(|batch| batch.unwrap()).collect::<Vec<_>>()
    };
    let (one, three) = (run(1), run(3));
    let sizes: Vec<usize> = one.iter().map(|batch| batch.size).collect();
    assert_eq!(sizes, [3, 3, 2]);
    for (a, b) in one.iter().zip(&three) {
        assert_eq!((&a.pixels, &a.tokens, &a.pairs), (&b.pixels, &b.tokens, &b.pairs));
    }
    let pair = data.pair(3).unwrap();
    assert_eq!(one[0].pairs[0], pair);
    let ids = Tokenizer::chinese().encode(&dataset_text(&pair.text), 12);
    assert_eq!(one[0].tokens[..12], ids);
}

#[test]
fn a_bad_picture_is_named_or_skipped() {
    let good = fs::read(fixture("preprocess/02_noise_rgb.png")).unwrap();
    let mut data = MemoryDataset::default();
    for id in 0..4 {
        let pair = Pair { image_id: Id::Int(id), text_id: Id::Int(id), text: format!("图{id}") };
        data.pairs.push(pair);
        let bytes = if id == 2 { good[..good.len() / 2].to_vec() } else { good.clone() };
        data.images.insert(Id::Int(id), bytes);
    }
    let data: Arc<dyn PairSource> = Arc::new(data);
    let options = LoaderOptions { batch_size: 4, ..Default::default() };
    let failed = batches(data.clone(), vec![0, 1, 2, 3], options.clone());
    let error = failed.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("image 2"), "{error}");
    let options = LoaderOptions { skip_bad_images: true, ..options };
    let transform = Arc::new(ImageTransform::new(16));
    let mut loader = Loader::new(data, transform, vec![0, 1, 2, 3], options).unwrap();
    let batch = loader.next().unwrap().unwrap();
    let ids: Vec<String> = batch.pairs.iter().map(|pair| pair.image_id.to_string()).collect();
    assert_eq!(ids, ["0", "1", "3", "3"]);
    assert_eq!(loader.take_skipped(), 1);
    assert!(loader.next().is_none());
}

#[test]
fn a_loader_can_be_dropped_early() {
    let data: Arc<dyn PairSource> =
        Arc::new(LmdbDataset::open(fixture("dataset/lmdb/train")).unwrap());
    let options = LoaderOptions { batch_size: 2, ..Default::default() };
    let transform = Arc::new(ImageTransform::new(16));
    let order = (0..10_000).map(|index| index % 13).collect();
    let mut loader = Loader::new(data, transform, order, options).unwrap();
    assert!(loader.next().unwrap().is_ok());
}
