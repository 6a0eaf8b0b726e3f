//! Every form of a data set cut into every other, and forms with random access.

#![allow(clippy::unwrap_used)]

#[path = "support/forms.rs"]
mod forms;

use std::{fs, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use cn_clip_data::{
    Id, Pair,
    forms::{ShardOptions, Source, TargetForm, open, write_shards},
    source::MemoryDataset,
};
use forms::{all, error, memory, options, png, text, written};
use tempfile::TempDir;

const TARGETS: [TargetForm; 4] =
    [TargetForm::Tar, TargetForm::Parquet, TargetForm::TextFiles, TargetForm::Lmdb];

#[test]
fn every_form_can_be_cut_into_every_other_and_holds_the_same() {
    let source = Source::Pairs(memory(50));
    let expected = all(&source);
    for first in TARGETS {
        let folder = TempDir::new().unwrap();
        let spec = written(folder.path(), &source, first, 7);
        let opened = open(&spec).unwrap();
        assert_eq!(opened.len(), 50);
        assert_eq!(all(&opened), expected, "{first:?}");
        for second in TARGETS {
            let folder = TempDir::new().unwrap();
            let spec = written(folder.path(), &opened, second, 20);
            assert_eq!(all(&open(&spec).unwrap()), expected, "{first:?} to {second:?}");
            if let Source::Pairs(pairs) = open(&spec).unwrap() {
                assert_eq!(pairs.num_images(), 17);
            }
        }
    }
}

#[test]
fn shards_are_cut_by_samples_and_bytes_and_never_replaced() {
    let source = Source::Pairs(memory(20));
    for (samples, bytes, shards) in [(7, u64::MAX, 3), (20, u64::MAX, 1), (100, 1, 20)] {
        for target in [TargetForm::Tar, TargetForm::Parquet] {
            let folder = TempDir::new().unwrap();
            let options = ShardOptions { bytes, compress: true, ..options(samples) };
            let write =
                || write_shards(&source, target, folder.path(), &options, &mut |_| ()).map(drop);
            write().unwrap();
            let names: Vec<String> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let count = names.iter().filter(|name| name.starts_with("train-")).count();
            assert_eq!(count, shards, "{names:?}");
            assert!(names.iter().all(|name| !name.ends_with(".part")));
            let again = write().unwrap_err().to_string();
            assert!(again.contains("is there already"), "{again}");
        }
    }
    let folder = TempDir::new().unwrap();
    for prefix in ["", ".a", "a/b"] {
        let options = ShardOptions { prefix: prefix.to_string(), ..options(1) };
        let target = TargetForm::Tar;
        assert!(write_shards(&source, target, folder.path(), &options, &mut |_| ()).is_err());
    }
}

#[test]
fn parts_are_joined_and_ids_may_collide() {
    let folder = TempDir::new().unwrap();
    let part = |name: &str, shade: usize, target| {
        let pairs = (0..3).map(|number| Pair {
            image_id: Id::Int(number),
            text_id: Id::Int(number),
            text: format!("{name}{number}"),
        });
        let pairs: Vec<Pair> = pairs.collect();
        let images = (0..3).map(|number| (Id::Int(number as i64), png(shade + number))).collect();
        let source = Source::Pairs(Arc::new(MemoryDataset { pairs, images }));
        written(&folder.path().join(name), &source, target, 10)
    };
    let first = part("a", 0, TargetForm::Lmdb);
    let second = part("b", 100, TargetForm::TextFiles);
    let joined = open(&format!("{first},{second}")).unwrap();
    assert_eq!((joined.len(), joined.num_images()), (6, Some(6)));
    let images: Vec<Vec<u8>> = all(&joined).into_iter().map(|sample| sample.image).collect();
    assert_eq!(images, [0, 1, 2, 100, 101, 102].map(png));
    let Source::Pairs(pairs) = &joined else { panic!() };
    assert_eq!((0..7).map(|index| pairs.part(index)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2]);
    assert!(pairs.pair(6).is_err());
    let groups = cn_clip_data::sampler::one_caption_groups(pairs.as_ref()).unwrap();
    assert_eq!(groups.len(), 6);

    // Written as one data set, each picture is kept under an id of its own.
    for target in TARGETS {
        let folder = TempDir::new().unwrap();
        let spec = written(folder.path(), &joined, target, 4);
        let read = all(&open(&spec).unwrap());
        assert_eq!(read.iter().map(|sample| sample.image.clone()).collect::<Vec<_>>(), images);
    }

    let braces = format!("{}/{{a,b}}/train", text(folder.path()));
    assert_eq!(all(&open(&braces).unwrap()), all(&joined));
    let tar = part("c", 0, TargetForm::Tar);
    let parquet = part("d", 0, TargetForm::Parquet);
    for mixed in [format!("{first},{tar}"), format!("{tar},{parquet}")] {
        let error = open(&mixed).err().unwrap().to_string();
        assert!(error.contains("mixes"), "{error}");
    }
}

#[test]
fn text_files_are_found_by_prefix_and_by_name() {
    let folder = TempDir::new().unwrap();
    let prefix = written(folder.path(), &Source::Pairs(memory(9)), TargetForm::TextFiles, 1);
    let expected = all(&open(&prefix).unwrap());
    for suffix in ["_texts.jsonl", "_imgs.tsv"] {
        assert_eq!(all(&open(&format!("{prefix}{suffix}")).unwrap()), expected);
    }
}

#[test]
fn malformed_text_files_are_errors_with_their_line() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let image = STANDARD.encode(png(1));
    let check = |tsv: &str, jsonl: &str, expected: &[&str]| {
        fs::write(at("t_imgs.tsv"), tsv).unwrap();
        fs::write(at("t_texts.jsonl"), jsonl).unwrap();
        let error = match open(text(&at("t"))) {
            Err(error) => error.to_string(),
            Ok(Source::Pairs(pairs)) => {
                pairs.image(0, &pairs.pair(0).unwrap()).unwrap_err().to_string()
            }
            Ok(Source::Stream(_)) => panic!(),
        };
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let good = format!("\u{feff}1\t{image}\r\n2\t{image}\n");
    let pair = r#"{"text_id": 1, "text": "a", "image_ids": [1]}"#;
    check(&format!("{good}1\t{image}\n"), pair, &["t_imgs.tsv:3", "already in line 1"]);
    check(&format!("{good}3 {image}\n"), pair, &["t_imgs.tsv:3", "no tab"]);
    check("", pair, &["t_imgs.tsv", "no pictures"]);
    check(&good, &pair.replace("[1]", "[7]"), &["t_texts.jsonl:1", "image 7"]);
    check(&good, &format!("{pair}\n{{\n"), &["t_texts.jsonl:2", "expected"]);
    check(&good, "", &["t_texts.jsonl", "no pairs"]);
    check("1\tab*d\n", pair, &["t_imgs.tsv:1", "image 1"]);
    fs::remove_file(at("t_imgs.tsv")).unwrap();
    assert!(error(at("t")).contains("t_imgs.tsv"));
    fs::write(at("other.jsonl"), pair).unwrap();
    assert!(error(at("other.jsonl")).contains("<split>_texts.jsonl"));
}

#[test]
fn tables_name_pictures() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("pictures")).unwrap();
    for number in 0..3 {
        fs::write(at("pictures").join(format!("{number}.png")), png(number)).unwrap();
    }
    fs::write(
        at("a.csv"),
        "\u{feff}id,Caption,filepath\r\n1,\"一只猫,\r\n\"\"两只\"\"\",pictures/0.png\r\n\
         \r\n2,狗,pictures/2.png\r\n",
    )
    .unwrap();
    fs::write(at("a.tsv"), "\u{feff}image\ttitle\npictures/0.png\t一只猫,\npictures/2.png\t狗")
        .unwrap();
    fs::write(
        at("a.jsonl"),
        "{\"image_path\": \"pictures/0.png\", \"captions\": [\"a\", \"b\"]}\n\
         {\"file_name\": \"pictures/2.png\", \"text\": \"c\", \"more\": 1}\n\
         {\"file_name\": \"pictures/2.png\", \"text\": []}\n"
            .replace("[]", "[\"d\"]"),
    )
    .unwrap();
    let read = |name: &str| {
        let source = open(text(&at(name))).unwrap();
        let samples = all(&source);
        assert_eq!(source.num_images(), Some(2));
        assert!(samples.iter().all(|sample| [png(0), png(2)].contains(&sample.image)));
        let ids = samples.iter().enumerate();
        assert!(ids.clone().all(|(index, sample)| sample.pair.text_id == Id::Int(index as i64)));
        samples
            .into_iter()
            .map(|sample| (sample.pair.image_id.to_string(), sample.pair.text))
            .collect::<Vec<_>>()
    };
    let rows = |rows: &[(usize, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(n, text)| (format!("pictures/{n}.png"), text.to_string())).collect()
    };
    assert_eq!(read("a.csv"), rows(&[(0, "一只猫,\r\n\"两只\""), (2, "狗")]));
    assert_eq!(read("a.tsv"), rows(&[(0, "一只猫,"), (2, "狗")]));
    assert_eq!(read("a.jsonl"), rows(&[(0, "a"), (0, "b"), (2, "c"), (2, "d")]));
}

#[test]
fn malformed_tables_are_errors_with_their_line() {
    let folder = TempDir::new().unwrap();
    let check = |name: &str, content: &[u8], expected: &[&str]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = match open(text(&path)) {
            Err(error) => error.to_string(),
            Ok(source) => {
                let Source::Pairs(pairs) = source else { panic!() };
                pairs.image(0, &pairs.pair(0).unwrap()).unwrap_err().to_string()
            }
        };
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        assert!(error.contains(name), "{error}");
    };
    check("a.csv", b"image,text\nnone.png,a\n", &["a.csv:2", "none.png", "relative"]);
    check("a.csv", b"image,words\n", &["a.csv:1", "`caption`"]);
    check("a.csv", b"text\na\n", &["a.csv:1", "`image_path`"]);
    check("a.csv", b"image,text\na.png,b,c\n", &["a.csv:2", "3 fields"]);
    check("a.csv", b"image,text\n,b\n", &["a.csv:2", "no picture"]);
    check("a.csv", b"image,text\na,\xff\n", &["a.csv:2", "UTF-8"]);
    check("a.csv", b"image,text\n", &["no rows"]);
    check("a.csv", b"", &["a.csv:1"]);
    check("a.jsonl", b"{\"image\": \"a\", \"text\": \"b\"}\n", &["a.jsonl:1", "relative"]);
    check("a.jsonl", b"{\"image\": \"a\", \"text\": 7}\n", &["a.jsonl:1", "list of strings"]);
    check("a.jsonl", b"{\"image\": \"a\", \"text\": [null]}\n", &["a.jsonl:1", "list of strings"]);
    check("a.jsonl", b"{\"image\": \"a\"}\n", &["a.jsonl:1", "no caption"]);
    check("a.jsonl", b"{\"text\": \"a\"}\n", &["a.jsonl:1", "no picture path"]);
    check("a.jsonl", b"[1]\n", &["a.jsonl:1", "object"]);
    check("a.jsonl", b"\n", &["a.jsonl:1", "empty"]);
    check("a.tar.gz", b"", &["unpack"]);
    check("a.bin", b"", &["unknown form"]);
    assert!(error(folder.path().join("none")).contains("does not exist"));
    assert!(error(folder.path()).contains("*.tar"));
}
