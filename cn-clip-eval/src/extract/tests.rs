use std::{fs, path::Path};

use cn_clip_data::{DataError, Id};

use super::{
    input::{Entries, Entry, Input, Size, pictures, texts},
    *,
};
use crate::features::{FeatureFormat, Modality, Settings};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn all<T>(input: Input<T>) -> (Vec<Entry<T>>, u64) {
    let entries: Vec<Entry<T>> = input.entries.map(Result::unwrap).collect();
    let cost = entries.iter().map(|entry| entry.cost).sum();
    if let Size::Entries(size) | Size::Bytes(size) = input.size {
        assert_eq!(size, cost, "progress ends at 100 %");
    }
    (entries, cost)
}

#[test]
fn pictures_are_the_same_from_lmdb_tsv_and_folder() {
    let (lmdb, _) = all(pictures(&fixture("dataset/lmdb/valid/imgs")).unwrap());
    let (split, _) = all(pictures(&fixture("dataset/lmdb/valid")).unwrap());
    let (tsv, _) = all(pictures(&fixture("dataset/valid_imgs.tsv")).unwrap());
    assert_eq!((lmdb.len(), split.len()), (tsv.len(), tsv.len()));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b")).unwrap();
    for entry in &tsv {
        let same = lmdb.iter().find(|other| other.id == entry.id).unwrap();
        let bytes = entry.content.read(&entry.id).unwrap();
        assert_eq!(bytes, same.content.read(&same.id).unwrap());
        fs::write(folder.path().join(format!("a/b/{}.JPG", entry.id)), bytes).unwrap();
    }
    fs::write(folder.path().join("a/notes.txt"), "no picture").unwrap();
    fs::write(folder.path().join("z.png"), "bad").unwrap();
    let (files, count) = all(pictures(folder.path()).unwrap());
    assert_eq!(count as usize, tsv.len() + 1);
    assert!(files.is_sorted_by_key(|entry| entry.id.clone()));
    assert_eq!(files.last().unwrap().id, Id::Text("z.png".to_owned()));
    for entry in &tsv {
        let id = Id::Text(format!("a/b/{}.JPG", entry.id));
        let file = files.iter().find(|file| file.id == id).unwrap();
        assert_eq!(file.content.read(&id).unwrap(), entry.content.read(&entry.id).unwrap());
    }
}

#[test]
fn sources_that_are_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let said = |path: &Path| pictures(path).err().unwrap().to_string();
    assert!(said(folder.path()).contains("holds no pictures"), "{}", said(folder.path()));
    assert!(said(&folder.path().join("none")).contains("none"));
    let file = folder.path().join("x.csv");
    fs::write(&file, "a").unwrap();
    assert!(said(&file).contains("is no source of pictures"));
    assert!(texts(&folder.path().join("none.jsonl")).is_err());
    // Lines are read when they are asked for; an error is the last.
    let tsv = folder.path().join("x_imgs.tsv");
    fs::write(&tsv, "1\tAA==\nbroken\n3\tAA==\n").unwrap();
    let entries: Vec<_> = pictures(&tsv).unwrap().entries.collect();
    assert_eq!(entries.len(), 2);
    let Err(error) = &entries[1] else { panic!() };
    assert!(error.to_string().contains("x_imgs.tsv:2: has no tab"), "{error}");
}

#[test]
fn texts_are_json_lines_or_plain_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (json, plain) = (folder.path().join("t.jsonl"), folder.path().join("t.TXT"));
    fs::write(&json, "{\"text_id\": \"a\", \"text\": \"图\"}\n{\"text_id\": 2, \"text\": \"\"}")
        .unwrap();
    fs::write(&plain, "图\n\n{\"text\": 1}\n").unwrap();
    let list = |path: &Path| -> Vec<(Id, String)> {
        all(texts(path).unwrap()).0.into_iter().map(|entry| (entry.id, entry.content)).collect()
    };
    assert_eq!(list(&json), [("a".into(), "图".into()), (2.into(), String::new())]);
    let expected =
        [(1.into(), "图".into()), (2.into(), "".into()), (3.into(), "{\"text\": 1}".into())];
    assert_eq!(list(&plain), expected);
}

const BATCH: usize = 4;
const DIM: usize = 3;

/// Entries of which every seventh cannot be decoded.
fn entries() -> Entries<u32> {
    let entry = |number: u32| {
        let id = if number.is_multiple_of(2) {
            Id::Int(number.into())
        } else {
            Id::Text(format!("p/{number}"))
        };
        Ok(Entry { id, content: number, cost: 1 })
    };
    Box::new((0..30).map(entry))
}

/// Features that depend on the whole batch, as those of a device may.
fn encode(batch: &[Entry<u32>]) -> Encoded {
    let sum: u32 = batch.iter().map(|entry| entry.content).sum();
    let (good, bad): (Vec<&Entry<u32>>, Vec<_>) =
        batch.iter().partition(|entry| entry.content % 7 != 3);
    Encoded {
        ids: good.iter().map(|entry| entry.id.clone()).collect(),
        features: good.iter().flat_map(|e| [1.0, e.content as f32, sum as f32]).collect(),
        skipped: bad.iter().map(|entry| (entry.id.clone(), "cut\noff".to_owned())).collect(),
        cost: batch.len() as u64,
    }
}

/// Extracts what is missing, up to `limit` batches; returns what it made, or nothing if it stopped.
fn extract(path: &Path, resume: bool, limit: usize) -> Result<Option<Summary>, OutputError> {
    let format = FeatureFormat::of_name(path).unwrap();
    let settings = Settings::new();
    let mut output = Output::open(path, format, Modality::Image, DIM, &settings, resume)?;
    let mut passed = 0;
    let mut rest = output.remaining(entries(), BATCH, |cost| passed += cost)?;
    assert_eq!(passed as usize % BATCH, 0);
    for _ in 0..limit {
        let batch: Vec<Entry<u32>> = rest.by_ref().take(BATCH).map(Result::unwrap).collect();
        if batch.is_empty() {
            return Ok(Some(output.finish()?));
        }
        output.write(&encode(&batch))?;
    }
    Ok(None)
}

#[test]
fn an_interrupted_extraction_comes_out_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for format in FeatureFormat::ALL {
        let (whole, path) = (
            folder.path().join(format!("whole.{format}")),
            folder.path().join(format!("x.{format}")),
        );
        let expected = extract(&whole, false, 100).unwrap().unwrap();
        assert_eq!((expected.rows, expected.skipped), (26, 4));
        let part = folder.path().join(format!("x.{format}.part"));
        extract(&path, false, 6).unwrap();
        let length = fs::metadata(&part).unwrap().len();
        for cut in (0..=length).step_by(23).chain([length]) {
            assert!(extract(&path, false, 6).unwrap().is_none());
            assert!(!path.exists());
            fs::File::options().write(true).open(&part).unwrap().set_len(cut).unwrap();
            let made = extract(&path, true, 100).unwrap().unwrap();
            assert_eq!((made.rows, made.skipped), (26, 4), "{format} {cut}");
            assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap(), "{format} {cut}");
            let list = fs::read_to_string(made.list.unwrap()).unwrap();
            assert_eq!(list, fs::read_to_string(expected.list.as_ref().unwrap()).unwrap());
            fs::remove_file(&path).unwrap();
        }
    }
    let list = fs::read_to_string(folder.path().join("whole.jsonl.skipped.txt")).unwrap();
    assert_eq!(list, "\"p/3\"\tcut off\n10\tcut off\n\"p/17\"\tcut off\n24\tcut off\n");
}

#[test]
fn another_input_does_not_continue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    extract(&path, false, 2).unwrap();
    let settings = Settings::new();
    for (other, found) in [
        (Box::new(entries().skip(1)) as Entries<u32>, "p/1"),
        (Box::new(entries().take(3)), "the end"),
    ] {
        let mut output =
            Output::open(&path, FeatureFormat::Jsonl, Modality::Image, DIM, &settings, true)
                .unwrap();
        let error = output.remaining(other, BATCH, |_| ()).err().unwrap();
        assert!(matches!(error, OutputError::Changed { .. }), "{error}");
        assert!(error.to_string().contains(found), "{error}");
    }
    assert!(extract(&path, true, 100).unwrap().is_some(), "nothing was lost");
}

#[test]
fn a_run_without_bad_pictures_removes_the_old_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let list = extract(&path, false, 100).unwrap().unwrap().list.unwrap();
    assert!(list.exists());
    let settings = Settings::new();
    let mut output =
        Output::open(&path, FeatureFormat::Jsonl, Modality::Image, DIM, &settings, false).unwrap();
    let mut batch = encode(&entries().take(3).map(Result::unwrap).collect::<Vec<_>>());
    batch.skipped.clear();
    output.write(&batch).unwrap();
    assert_eq!(output.finish().unwrap().list, None);
    assert!(!list.exists());
}

#[test]
fn batches_come_in_order_and_the_first_error_ends() {
    let run = |entries: Entries<u32>, fail_at: u32| {
        let mut seen = Vec::new();
        let result = run_ahead(
            entries,
            BATCH,
            |batch| Ok(batch.iter().map(|entry| entry.content).collect::<Vec<u32>>()),
            |batch: Vec<u32>| {
                seen.extend_from_slice(&batch);
                match batch.contains(&fail_at) {
                    true => Err(ExtractError::Sink("stop")),
                    false => Ok(()),
                }
            },
        );
        (seen, result)
    };
    let (seen, result) = run(entries(), 99);
    assert_eq!(seen, (0..30).collect::<Vec<u32>>());
    result.unwrap();
    let (seen, result) = run(entries(), 5);
    assert_eq!(seen, (0..8).collect::<Vec<u32>>());
    assert!(matches!(result, Err(ExtractError::Sink("stop"))));
    let failing = entries().take(6).chain([Err(DataError::Config("bad".to_owned()))]);
    let (seen, result) = run(Box::new(failing), 99);
    assert_eq!(seen, [0, 1, 2, 3]);
    assert!(matches!(result, Err(ExtractError::Data(DataError::Config(_)))));
}
