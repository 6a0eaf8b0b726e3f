//! Tar and parquet shards: streams in parts, those of other programs, malformed and damaged ones.

#![allow(clippy::unwrap_used)]

#[path = "support/forms.rs"]
mod forms;

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
};

use cn_clip_data::{
    Id, Pair,
    forms::{Part, Sample, SampleStream, ShardOptions, Source, TargetForm, open, write_shards},
    source::MemoryDataset,
};
use forms::{error, memory, options, png, stream, text, written};
use tempfile::TempDir;

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
