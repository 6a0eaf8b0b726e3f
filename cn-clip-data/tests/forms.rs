//! Every form of a data set: read back, cut into shards, resumed, damaged.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use cn_clip_data::{
    DataError, Id, Pair,
    forms::{Part, Sample, SampleStream, ShardOptions, Source, TargetForm, open, write_shards},
    image::{ImageError, PixelTransform},
    loader::{Batch, Loader, LoaderOptions},
    source::{MemoryDataset, PairSource},
};
use tempfile::TempDir;

/// A picture of one colour.
fn png(number: usize) -> Vec<u8> {
    let colour = image::Rgb([(number % 256) as u8, (number / 256) as u8, 7]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(2, 2, colour)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// Pairs of which three share each picture, and some follow each other with one text.
fn memory(pairs: usize) -> Arc<dyn PairSource> {
    let pair = |number: usize| Pair {
        image_id: match number / 3 {
            0 => Id::Text("erste Bild".to_string()),
            picture => Id::Int(picture as i64 - 2),
        },
        text_id: Id::Int(number as i64 / 2),
        text: match number / 2 {
            1 => "  两只猫，\"引号\"\n第二行 ".to_string(),
            text => format!("文本 {text}"),
        },
    };
    let pairs: Vec<Pair> = (0..pairs).map(pair).collect();
    let images =
        pairs.iter().enumerate().map(|(number, pair)| (pair.image_id.clone(), png(number / 3)));
    Arc::new(MemoryDataset { images: images.collect(), pairs: pairs.clone() })
}

fn all(source: &Source) -> Vec<Sample> {
    match source {
        Source::Pairs(pairs) => (0..pairs.len())
            .map(|index| {
                let pair = pairs.pair(index).unwrap();
                let image = pairs.image(index, &pair).unwrap();
                Sample { pair, image }
            })
            .collect(),
        Source::Stream(stream) => stream.pairs().map(Result::unwrap).collect(),
    }
}

fn stream(spec: &str) -> Arc<dyn SampleStream> {
    match open(spec).unwrap() {
        Source::Stream(stream) => stream,
        Source::Pairs(_) => panic!("{spec} is no stream"),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn error(spec: impl AsRef<Path>) -> String {
    open(text(spec.as_ref())).err().unwrap().to_string()
}

fn options(samples: usize) -> ShardOptions {
    ShardOptions { prefix: "train".to_string(), samples, ..ShardOptions::default() }
}

/// Writes a data set and returns what names it.
fn written(folder: &Path, source: &Source, target: TargetForm, samples: usize) -> String {
    let mut calls = 0;
    let mut progress = |done| {
        calls += 1;
        assert_eq!(done, calls);
    };
    let options = options(samples);
    let summary = write_shards(source, target, folder, &options, &mut progress).unwrap();
    assert_eq!(summary.samples, calls);
    assert!(summary.paths.iter().all(|path| path.exists()));
    let name = match target {
        TargetForm::Tar => "train-*.tar",
        TargetForm::Parquet => "train-*.parquet",
        TargetForm::TextFiles | TargetForm::Lmdb => "train",
    };
    text(&folder.join(name)).to_string()
}

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

/// Names of what a part of a stream gives.
fn texts(stream: &dyn SampleStream, part: Part) -> Vec<String> {
    stream.samples(&part).map(|sample| sample.unwrap().pair.text).collect()
}

#[test]
fn streams_are_deterministic_resumable_and_split_among_ranks() {
    let pairs: Vec<Pair> = (0..48)
        .map(|number| Pair { image_id: number.into(), text_id: 0.into(), text: number.to_string() })
        .collect();
    let images: HashMap<Id, Vec<u8>> =
        (0..48).map(|number| (Id::Int(number), png(number as usize))).collect();
    let source = Source::Pairs(Arc::new(MemoryDataset { pairs, images }));
    for target in [TargetForm::Tar, TargetForm::Parquet] {
        let folder = TempDir::new().unwrap();
        let stream = stream(&written(folder.path(), &source, target, 6));
        assert_eq!((stream.len(), stream.num_images()), (48, Some(48)));
        // With 16 ranks there are fewer shards than ranks.
        for world in [1, 2, 4, 8, 16] {
            let mut union = HashSet::new();
            for rank in 0..world {
                let part = Part { seed: 5, epoch: 2, rank, world, buffer: 5, ..Part::default() };
                union.extend(texts(stream.as_ref(), Part { take: 48 / world, ..part }));
                let whole = texts(stream.as_ref(), Part { take: 60, ..part });
                assert_eq!(whole, texts(stream.as_ref(), Part { take: 60, ..part }));
                for skip in [1, 5, 6, 7, 29, 48, 59] {
                    let rest = Part { skip, take: 60 - skip, ..part };
                    assert_eq!(texts(stream.as_ref(), rest), whole[skip..], "{target:?} {skip}");
                }
            }
            assert_eq!(union.len(), 48, "{target:?} {world}");
        }
        let part = Part { take: 48, ..Part::default() };
        let shuffled = texts(stream.as_ref(), part);
        assert_ne!(shuffled, texts(stream.as_ref(), Part { epoch: 1, ..part }));
        assert_ne!(shuffled, texts(stream.as_ref(), Part { seed: 1, ..part }));
        let plain = texts(stream.as_ref(), Part { shuffle: false, ..part });
        assert_eq!(plain, (0..48).map(|number| number.to_string()).collect::<Vec<_>>());
        for sample in stream.samples(&part) {
            let sample = sample.unwrap();
            assert_eq!(sample.image, png(sample.pair.text.parse().unwrap()));
        }
        // What is passed over is not opened.
        let shard = |number| fs::remove_file(folder.path().join(number)).is_ok();
        assert!(shard("train-000000.tar") || shard("train-000000.parquet"));
        let rest = Part { shuffle: false, skip: 6, take: 42, ..part };
        assert_eq!(texts(stream.as_ref(), rest), plain[6..]);
        assert!(stream.samples(&Part { skip: 5, ..rest }).next().unwrap().is_err());
        let wrong = Part { rank: 2, world: 2, ..part };
        assert!(stream.samples(&wrong).next().unwrap().is_err());
    }
}

/// A tar header with a right checksum; `size` is written as given.
fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..124 + size.len()].copy_from_slice(size);
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
    entry(name, b'0', bytes)
}

fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}\0", bytes.len());
    [header(name, kind, size.as_bytes()), padded(bytes)].concat()
}

fn tar(folder: &Path, name: &str, parts: &[Vec<u8>]) -> String {
    let path = folder.join(name);
    fs::write(&path, parts.concat()).unwrap();
    text(&path).to_string()
}

#[test]
fn tar_shards_of_other_programs_are_read() {
    let folder = TempDir::new().unwrap();
    let long = format!("{}/b.PNG", "folder/".repeat(30));
    let long_json = long.replace(".PNG", ".json");
    let pax = |text: &str| entry("pax", b'x', text.as_bytes());
    let record = format!("path={long_json}\n");
    let record = format!("{} {record}", record.len() + 4);
    let spec = tar(
        folder.path(),
        "s.tar",
        &[
            entry("./", b'5', b""),
            entry("pax_global_header", b'g', b"19 comment=whatever\n"),
            member("._a.jpg", b"finder"),
            member("readme", b"no sample"),
            member("a.jpg", &png(1)),
            member("a.cls", b"7"),
            member("a.txt", "\n 一只猫 \n".as_bytes()),
            member("a.json", br#"{"caption": "other", "image_id": {"no": "id"}, "text_id": 5}"#),
            entry("././@LongLink", b'L', format!("{long}\0").as_bytes()),
            member("cut", &png(2)),
            pax(&record),
            member("cut", br#"{"text": ["x", "y", "z"], "image_id": 9}"#),
            member("c.d.e", b"no sample either"),
            member("d.txt", b"d"),
            member("d.webp", &png(3)),
        ],
    );
    let source = stream(&spec);
    assert_eq!(source.len(), 3);
    let samples: Vec<Sample> = source.pairs().map(Result::unwrap).collect();
    let shown: Vec<(String, String, String)> = samples
        .iter()
        .map(|Sample { pair, .. }| {
            (pair.image_id.to_string(), pair.text_id.to_string(), pair.text.clone())
        })
        .collect();
    let expected = [
        ("s/a", "s/a", "一只猫"),
        ("9", "9#0", "x"),
        ("9", "9#1", "y"),
        ("9", "9#2", "z"),
        ("s/d", "s/d", "d"),
    ];
    assert_eq!(shown, expected.map(|(a, b, c)| (a.to_string(), b.to_string(), c.to_string())));
    assert_eq!(
        samples.iter().map(|sample| &sample.image).collect::<Vec<_>>(),
        [&png(1), &png(2), &png(2), &png(2), &png(3)]
    );
    // One caption at a time, another one in another epoch.
    let epoch = |epoch| {
        let part = Part { epoch, take: 3, ..Part::default() };
        texts(source.as_ref(), part).into_iter().collect::<HashSet<String>>()
    };
    let seen: HashSet<String> = (0..30).flat_map(epoch).collect();
    assert!((0..30).all(|number| epoch(number).len() == 3));
    assert_eq!(seen.len(), 5);
}

#[test]
fn sizes_json_is_believed_and_checked() {
    let folder = TempDir::new().unwrap();
    let sample =
        |key: &str| [member(&format!("{key}.jpg"), &png(1)), member(&format!("{key}.txt"), b"t")];
    let spec = tar(folder.path(), "s.tar", &[sample("a"), sample("b")].concat());
    let sizes = folder.path().join("sizes.json");
    fs::write(&sizes, r#"{"s.tar": 5, "other.tar": 1}"#).unwrap();
    let counted = stream(&spec);
    assert_eq!(counted.len(), 5);
    let error = counted.samples(&Part::default()).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("s.tar") && error.contains("sizes.json"), "{error}");
    assert_eq!(counted.samples(&Part::default()).count(), 1);
    fs::write(&sizes, r#"{"s.tar": 2}"#).unwrap();
    assert_eq!(texts(stream(&spec).as_ref(), Part { take: 2, ..Part::default() }), ["t", "t"]);
    fs::write(&sizes, r#"{"s.tar": "2"}"#).unwrap();
    assert!(self::error(&spec).contains("sizes.json"));
    fs::write(&sizes, r#"{"gone.tar": 2}"#).unwrap();
    assert_eq!(stream(&spec).len(), 2);
    assert!(self::error(folder.path().join("gone.tar")).contains("gone.tar"));
}

#[test]
fn malformed_tar_shards_are_errors_with_their_member() {
    let folder = TempDir::new().unwrap();
    let check = |parts: &[Vec<u8>], expected: &[&str]| {
        let spec = tar(folder.path(), "s.tar", parts);
        let error = match open(&spec) {
            Err(error) => error.to_string(),
            Ok(Source::Stream(stream)) => {
                stream.samples(&Part::default()).next().unwrap().unwrap_err().to_string()
            }
            Ok(Source::Pairs(_)) => panic!(),
        };
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let (picture, caption) = (member("a.jpg", &png(1)), member("a.txt", b"t"));
    let absurd = [&[0x80][..], &[0xff; 11]].concat();
    let large = [&[0x80, 0, 0, 0][..], &[0x7f; 8]].concat();
    check(&[header("a.jpg", b'0', &absurd)], &["s.tar", "byte 0", "size"]);
    check(&[header("a.jpg", b'0', &large)], &["s.tar", "a.jpg", "cut off"]);
    check(&[header("a.jpg", b'0', b"77777777777\0")], &["a.jpg", "cut off"]);
    check(&[header("a.jpg", b'0', b"9")], &["no number"]);
    check(&[header("x", b'L', b"70000000\0"), vec![0; 15 << 20]], &["1 MiB"]);
    check(&[entry("x", b'x', b"99 path=a\n"), picture.clone()], &["pax"]);
    check(&[entry("x", b'x', b"11 size=-1\n"), picture.clone()], &["pax"]);
    check(&[picture.clone(), vec![1; 512]], &["byte 1024", "damaged"]);
    check(&[picture.clone(), caption[..300].to_vec()], &["byte 1024", "cut off"]);
    check(&[header("a.jpg", b'S', b"0")], &["sparse"]);
    let long = member("a.txt", &vec![b' '; (16 << 20) + 1]);
    check(&[picture.clone(), long], &["a.txt", "absurdly long"]);
    check(std::slice::from_ref(&picture), &["s.tar", "`a`", "neither .txt nor .json"]);
    check(std::slice::from_ref(&caption), &["`a`", "no picture"]);
    check(&[picture.clone(), member("a.png", &png(1)), caption], &["`a.jpg` and `a.png`"]);
    let with = |name: &str, bytes: &[u8]| [picture.clone(), member(name, bytes)];
    check(&with("a.txt", b"\xff"), &["a.txt", "UTF-8"]);
    check(&with("a.json", b"{"), &["a.json", "JSON"]);
    check(&with("a.json", b"{}"), &["a.json", "caption"]);
    check(&with("a.json", br#"{"caption": 7}"#), &["a.json", "list of strings"]);
    check(&[], &["no samples"]);
}

/// Writes a parquet file: a schema and, for each column, its values with definition and repetition
/// levels.
type Column<'a> = (Vec<&'a [u8]>, Option<Vec<i16>>, Option<Vec<i16>>);

fn parquet_file(path: &Path, schema: &str, groups: &[Vec<Column>]) {
    use parquet::{
        data_type::{ByteArray, ByteArrayType},
        file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        for (values, definition, repetition) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> =
                values.iter().map(|value| ByteArray::from(value.to_vec())).collect();
            let (definition, repetition) = (definition.as_deref(), repetition.as_deref());
            column.typed::<ByteArrayType>().write_batch(&values, definition, repetition).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

const HUGGING_FACE: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional group captions (LIST) { repeated group list { optional binary item (STRING); } }
}";

#[test]
fn hugging_face_parquet_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("f.parquet");
    fs::write(folder.path().join("one.png"), png(1)).unwrap();
    let zero = png(0);
    let rows: Vec<Column> = vec![
        (vec![&zero], Some(vec![2, 1]), None),
        (vec![b"ignored.png", b"one.png"], Some(vec![2, 2]), None),
        (vec![b"a", b"b", b"c"], Some(vec![3, 3, 3]), Some(vec![0, 1, 0])),
    ];
    parquet_file(&path, HUGGING_FACE, &[rows.clone(), rows]);
    let source = stream(text(&path));
    assert_eq!(source.len(), 4);
    let read: Vec<(String, String, Vec<u8>)> = source
        .pairs()
        .map(Result::unwrap)
        .map(|Sample { pair, image }| (pair.image_id.to_string(), pair.text, image))
        .collect();
    let row = |id: &str, text: &str, picture| (id.to_string(), text.to_string(), png(picture));
    let expected = [
        row("f/0", "a", 0),
        row("f/0", "b", 0),
        row("f/1", "c", 1),
        row("f/2", "a", 0),
        row("f/2", "b", 0),
        row("f/3", "c", 1),
    ];
    assert_eq!(read, expected);
    fs::remove_file(folder.path().join("one.png")).unwrap();
    let errors: Vec<String> =
        source.pairs().filter_map(|sample| Some(sample.err()?.to_string())).collect();
    assert_eq!(errors.len(), 2);
    assert!(errors[1].contains("f.parquet: row 3") && errors[1].contains("one.png"), "{errors:?}");
}

#[test]
fn malformed_parquet_is_an_error_with_its_row() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("f.parquet");
    let check = |schema: &str, columns: Vec<Column>, expected: &[&str]| {
        parquet_file(&path, &format!("message schema {{ {schema} }}"), &[columns]);
        let error = match open(text(&path)) {
            Err(error) => error.to_string(),
            Ok(Source::Stream(stream)) => stream.pairs().last().unwrap().unwrap_err().to_string(),
            Ok(Source::Pairs(_)) => panic!(),
        };
        assert!(error.contains("f.parquet"), "{error}");
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    let column = |value: &'static [u8]| -> Column { (vec![value, value], None, None) };
    let null = || -> Column { (vec![b"x"], Some(vec![1, 0]), None) };
    check("required binary text;", vec![column(b"a")], &["pictures", "`image_bytes`", "`text`"]);
    check("required binary image;", vec![column(b"a")], &["captions", "`caption`"]);
    check(
        "optional binary image; required binary text (STRING);",
        vec![null(), column(b"a")],
        &["row 1", "`image`", "no picture"],
    );
    check(
        "required binary image; optional binary text (STRING);",
        vec![column(b"a"), null()],
        &["row 1", "`text`", "no caption"],
    );
    check(
        "required binary image; required binary text;",
        vec![column(b"a"), column(b"\xff")],
        &["row 0", "`text`", "UTF-8"],
    );
    check(
        "required binary image; required binary text (STRING);",
        vec![column(b"a"), column(b"\xff")],
        &["parquet"],
    );
    check(
        "required binary image_path; required binary text;",
        vec![column(b"none.png"), column(b"a")],
        &["row 1", "none.png"],
    );
    fs::write(&path, b"PAR1PAR1").unwrap();
    assert!(error(&path).contains("f.parquet"));
    fs::write(&path, b"").unwrap();
    assert!(error(&path).contains("f.parquet"));
    parquet_file(&path, HUGGING_FACE, &[]);
    assert!(error(&path).contains("no rows"));
}

#[test]
fn damaged_shards_are_errors_not_panics() {
    let source = Source::Pairs(memory(12));
    for target in [TargetForm::Tar, TargetForm::Parquet] {
        let folder = TempDir::new().unwrap();
        let options = ShardOptions { compress: true, ..options(12) };
        let written = write_shards(&source, target, folder.path(), &options, &mut |_| ()).unwrap();
        let path = &written.paths[0];
        let _ = fs::remove_file(folder.path().join("sizes.json"));
        let whole = fs::read(path).unwrap();
        let mut failed = 0;
        for round in 0..300_usize {
            let mut damaged = whole.clone();
            let at = round * 7919 % damaged.len();
            match round % 3 {
                0 => damaged.truncate(at),
                1 => damaged[at] ^= 1 << (round % 8),
                _ => damaged[at] = 0xff,
            }
            fs::write(path, &damaged).unwrap();
            failed += match open(text(path)) {
                Err(_) => 1,
                Ok(Source::Stream(stream)) => {
                    usize::from(stream.pairs().take(1000).any(|sample| sample.is_err()))
                }
                Ok(Source::Pairs(_)) => panic!(),
            };
        }
        assert!(failed > 90, "{target:?}: {failed}");
    }
}

/// Takes pictures apart by their first byte: writes seed and byte, and refuses 255.
struct Probe;

impl PixelTransform for Probe {
    fn resolution(&self) -> usize {
        1
    }

    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        if bytes == [255] {
            return Err(ImageError::Base64 { reason: "bad".to_string() });
        }
        out.copy_from_slice(&[bytes[0].into(), (seed % 65_536) as f32, 0.0]);
        Ok(())
    }
}

fn samples(pictures: &[u8]) -> Vec<Result<Sample, DataError>> {
    let sample = |(number, byte): (usize, &u8)| {
        let number = number as i64;
        let pair =
            Pair { image_id: number.into(), text_id: number.into(), text: "猫".to_string() };
        Ok(Sample { pair, image: vec![*byte] })
    };
    pictures.iter().enumerate().map(sample).collect()
}

fn batches(
    samples: Vec<Result<Sample, DataError>>,
    options: &LoaderOptions,
) -> Vec<Result<Batch, DataError>> {
    Loader::stream(Box::new(samples.into_iter()), Arc::new(Probe), options.clone())
        .unwrap()
        .collect()
}

#[test]
fn a_stream_of_batches_leaves_bad_pictures_out() {
    let options = LoaderOptions {
        batch_size: 3,
        context_length: 4,
        workers: 2,
        seed: 9,
        skip_bad_images: true,
        ..LoaderOptions::default()
    };
    let pictures = [1, 255, 3, 4, 255, 255, 7, 8, 9, 255];
    let run = |pictures: &[u8], options: &LoaderOptions| -> Vec<Batch> {
        batches(samples(pictures), options).into_iter().map(Result::unwrap).collect()
    };
    let done = run(&pictures, &options);
    assert_eq!(done.iter().map(|batch| batch.size).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(done.iter().map(|batch| batch.consumed).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(done[0].tokens.len(), 12);
    let bytes = |batch: &Batch| batch.pixels.chunks(3).map(|pixel| pixel[0]).collect::<Vec<_>>();
    // The fourth sample takes the place of the second.
    assert_eq!(bytes(&done[0]), [1.0, 4.0, 3.0]);
    let ids: Vec<String> = done[0].pairs.iter().map(|pair| pair.image_id.to_string()).collect();
    assert_eq!(ids, ["0", "3", "2"]);
    let ragged = run(&[1, 2, 3, 255, 5], &options);
    assert_eq!((ragged[1].size, bytes(&ragged[1])), (1, vec![5.0]));
    assert_eq!((ragged[1].pixels.len(), ragged[1].tokens.len()), (3, 4));

    // What follows a batch is the same when it is begun there.
    let first = done[0].size;
    let rest = run(&pictures[done[0].consumed..], &LoaderOptions { first, ..options.clone() });
    assert_eq!(rest[0].pixels, done[1].pixels);

    // With a stride the seeds are those of every second position.
    let seeds = |batch: &Batch| batch.pixels.chunks(3).map(|pixel| pixel[1]).collect::<Vec<_>>();
    let plain = run(&[1; 6], &LoaderOptions { batch_size: 6, ..options.clone() });
    let strided = LoaderOptions { first: 1, stride: 2, ..options.clone() };
    let all = seeds(&plain[0]);
    assert_eq!(seeds(&run(&[1; 3], &strided)[0]), [all[1], all[3], all[5]]);

    let strict = LoaderOptions { skip_bad_images: false, ..options.clone() };
    let failed = batches(samples(&pictures), &strict);
    assert!(matches!(failed[..], [Err(DataError::Image { .. })]));
    let mut broken = samples(&[1, 2, 3, 4]);
    broken.push(Err(DataError::Config("shard".to_string())));
    let failed = batches(broken, &options);
    assert!(matches!(failed[..], [Ok(_), Err(DataError::Config(_))]));
}

#[test]
fn a_tar_stream_makes_batches() {
    let folder = TempDir::new().unwrap();
    let spec = written(folder.path(), &Source::Pairs(memory(30)), TargetForm::Tar, 8);
    let samples = stream(&spec).samples(&Part { take: 30, ..Part::default() });
    let options = LoaderOptions { batch_size: 8, ..LoaderOptions::default() };
    let transform = Arc::new(cn_clip_data::image::ImageTransform::new(4));
    let loader = Loader::stream(samples, transform, options).unwrap();
    assert_eq!(loader.size_hint(), (0, Some(4)));
    let sizes: Vec<usize> = loader.map(|batch| batch.unwrap().size).collect();
    assert_eq!(sizes, [8, 8, 8, 6]);
}
