//! Files that lie: every one is an error, and none makes the reader allocate much.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/golden.rs"]
mod golden;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use burn::tensor::DType;
use burn_pack::{Bytes, Tensor, Writer};
use cn_clip_model::{
    ClipConfig,
    checkpoint::{Checkpoint, ConvertOptions, Format, convert},
};
use golden::fixture;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// The system's allocator, which remembers the largest request.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// No file of these tests is larger than some megabytes.
fn check_allocations() {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < 64 << 20, "{largest} bytes at once");
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Opens the bytes as a file and reads every tensor.
fn read(bytes: &[u8]) -> Result<usize, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile");
    fs::write(&path, bytes).unwrap();
    let result = read_file(&path);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is unpacked");
    result
}

fn read_file(path: &Path) -> Result<usize, String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    for (_, tensor) in &checkpoint.state_dict {
        tensor.read().map_err(|error| error.to_string())?;
    }
    Ok(checkpoint.state_dict.len())
}

fn refused(bytes: &[u8], part: &str) {
    let error = read(bytes).unwrap_err();
    assert!(error.contains(part), "`{part}` is not in: {error}");
    assert!(error.contains("hostile"), "{error}");
    check_allocations();
}

/// `{"w": tensor}` over `data/0`, the parts of the tensor given as pickled.
fn pickled(storage: &str, count: &[u8], offset: &[u8], shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let text =
        |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    [
        b"\x80\x02}",
        &text("w")[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        format!("ctorch\n{storage}\n").as_bytes(),
        &text("0"),
        &text("cpu"),
        count,
        b"tQ",
        offset,
        b"(",
        shape,
        b"t(",
        stride,
        b"t\x89}tRs.",
    ]
    .concat()
}

fn int(value: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn tensor_file(pickle: &[u8], data: &[u8]) -> Vec<u8> {
    archive(&[("x/data.pkl", pickle), ("x/data/0", data)])
}

#[test]
fn an_honest_file_of_the_same_make_is_read() {
    let pickle = pickled("FloatStorage", &int(2), &int(0), &int(2), &int(1));
    assert_eq!(read(&tensor_file(&pickle, &[0; 8])), Ok(1));
}

#[test]
fn names_that_are_not_data_are_refused_by_name() {
    for (pickle, name) in [
        (&b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R."[..], "`posix.system`"),
        (b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.", "`builtins.eval`"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "`builtins.exec`"),
        (b"\x80\x02c__builtin__\ngetattr\n.", "`__builtin__.getattr`"),
        (b"\x80\x02ctorch\nload\n.", "`torch.load`"),
    ] {
        refused(&archive(&[("x/data.pkl", pickle)]), name);
    }
    // Instructions that find names elsewhere, or in other ways.
    for pickle in [&b"\x80\x02(S'ls'\nios\nsystem\n."[..], b"\x80\x02\x82\x01.", b"\x80\x02P1\n."] {
        refused(&archive(&[("x/data.pkl", pickle)]), "refused");
    }
    // Objects of classes that are none of TorchScript's.
    let made = b"\x80\x02ccollections\nOrderedDict\n)\x81.";
    refused(&archive(&[("x/data.pkl", made)]), "TorchScript");
}

#[test]
fn absurd_sizes_are_errors() {
    let huge = 1i64 << 60;
    let (one, zero) = (int(1), int(0));
    let pair = |a: i64, b: i64| [int(a), int(b)].concat();
    for pickle in [
        pickled("FloatStorage", &int(huge), &zero, &int(huge), &one),
        pickled("FloatStorage", &int(2), &zero, &pair(1 << 31, 1 << 31), &pair(1 << 31, 1)),
        pickled("FloatStorage", &int(2), &int(huge), &int(2), &one),
        pickled("FloatStorage", &int(2), &zero, &int(2), &int(huge)),
        // One element that is repeated without end.
        pickled("FloatStorage", &int(2), &zero, &int(1 << 40), &zero),
        pickled("FloatStorage", &int(2), &zero, &pair(i64::MAX, i64::MAX), &pair(0, 0)),
    ] {
        refused(&tensor_file(&pickle, &[0; 8]), "tensor");
    }
    for pickle in [
        pickled("FloatStorage", &int(2), &zero, &int(-2), &one),
        pickled("FloatStorage", &int(-2), &zero, &int(2), &one),
    ] {
        refused(&tensor_file(&pickle, &[0; 8]), "damaged");
    }
    refused(&archive(&[("x/data.pkl", b"\x80\x04\x8e\0\0\0\0\0\0\0\x10")]), "truncated");
    // An entry that says it has 4 GB, in the directory at the end of the archive.
    let pickle = pickled("FloatStorage", &int(1 << 29), &zero, &int(1 << 29), &one);
    let mut bytes = tensor_file(&pickle, &[0; 8]);
    let directory: Vec<usize> =
        (0..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(b"PK\x01\x02")).collect();
    let entry = *directory.last().unwrap();
    bytes[entry + 20..entry + 28].fill(0xfe);
    refused(&bytes, "hostile");

    let safetensors = |header: &str| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
    };
    for header in [
        r#"{"w":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,1152921504606846976]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
    ] {
        refused(&safetensors(header), "hostile");
    }
    let long = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
    refused(&long, "header");
}

/// A record of one tensor.
fn record() -> Vec<u8> {
    let bytes = Bytes::from_bytes_vec(vec![0; 8]);
    let tensor = Tensor::new("bert.x.bias".into(), DType::F32, vec![2], None, bytes);
    Writer::new(vec![tensor]).into_bytes().unwrap().to_vec()
}

#[test]
fn records_that_lie_are_errors() {
    let whole = record();
    assert_eq!(read(&whole), Ok(1));
    // The metadata says how long they are.
    let mut long = whole.clone();
    long[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&long, "metadata");
    let mut beyond = whole.clone();
    beyond[6..10].copy_from_slice(&(90u32 << 20).to_le_bytes());
    refused(&beyond, "truncated");
    let mut newer = whole.clone();
    newer[4] = 9;
    refused(&newer, "version 9");
    refused(&whole[..whole.len() - 1], "truncated");
    // An array of 2^60 items, and arrays in arrays.
    let with_metadata = |metadata: &[u8]| {
        [&whole[..6], &(metadata.len() as u32).to_le_bytes(), metadata, &[0; 512]].concat()
    };
    let tensors = b"\xa1\x67tensors\xa1\x61w\xa1\x65shape";
    let huge = [&tensors[..], b"\x9b\x10\0\0\0\0\0\0\0"].concat();
    refused(&with_metadata(&huge), "damaged Burn record");
    let deep = [&tensors[..], &[0x81; 100_000]].concat();
    refused(&with_metadata(&deep), "damaged Burn record");
    // A byte of it changed: whatever is read, nothing panics.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        drop(read(&bytes));
    }
    check_allocations();
}

#[test]
fn truncated_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let meta: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("train_run/meta.json")).unwrap()).unwrap();
    let config: ClipConfig = serde_json::from_value(meta["model_config"].clone()).unwrap();
    let mut files: Vec<PathBuf> = vec![fixture("train_run/init_fp16.pt")];
    for (name, format) in [("a.bpk", Format::Burn), ("a.safetensors", Format::Safetensors)] {
        let options =
            ConvertOptions { config: Some(config.clone()), ..ConvertOptions::new(format) };
        convert(&files[0], &dir.path().join(name), &options).unwrap();
        files.push(dir.path().join(name));
    }
    for file in files {
        let whole = fs::read(&file).unwrap();
        assert!(read(&whole).unwrap() > 50);
        for part in [1, 3, 10, 50, 97, 99] {
            assert!(read(&whole[..whole.len() * part / 100]).is_err(), "{part} % of {file:?}");
        }
        assert!(read(&whole[..whole.len() - 1]).is_err(), "{file:?}");
    }
    check_allocations();
}

#[test]
fn names_in_archives_lead_nowhere() {
    let pickle = pickled("FloatStorage", &int(2), &int(0), &int(2), &int(1));
    // Names are only compared, and nothing is unpacked (`read` looks).
    for root in ["../../x", "/x", "..\\x", "C:\\x"] {
        let (head, data) = (format!("{root}/data.pkl"), format!("{root}/data/0"));
        assert_eq!(read(&archive(&[(&head, &pickle), (&data, &[0; 8])])), Ok(1), "{root}");
    }
    // A storage whose name leads out of the archive is not there.
    let at = pickle.windows(6).position(|part| part == b"X\x01\0\0\x000").unwrap();
    let mut outside = pickle[..at].to_vec();
    outside.extend(b"X\x0b\0\0\0../../etc/x");
    outside.extend(&pickle[at + 6..]);
    refused(&tensor_file(&outside, &[0; 8]), "data/../../etc/x is missing");
}

#[test]
fn nesting_and_objects_in_themselves_are_only_data() {
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(vec![b']'; 500_000]);
    deep.extend(vec![b'a'; 499_999]);
    deep.push(b'.');
    refused(&archive(&[("x/data.pkl", &deep)]), "no dictionary");
    for (pickle, part) in [
        // d = {}; d["state_dict"] = d.
        (&b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s."[..], "holds no tensors"),
        // An object that is its own attribute, and one that has itself twice.
        (b"\x80\x02c__torch__\nM\n)\x81q\0}X\x01\0\0\0ah\0sb.", "contain themselves"),
        (
            b"\x80\x02c__torch__\nM\n)\x81q\0}(X\x01\0\0\0ah\0X\x01\0\0\0bh\0ub.",
            "contain themselves",
        ),
        (b"\x80\x02c__torch__\nM\n)\x81.", "holds no tensors"),
        // A tuple of itself by the memo, and what was never stored.
        (b"\x80\x02]q\0h\0a.", "no dictionary"),
        (b"\x80\x02h\x05.", "never stored"),
    ] {
        refused(&archive(&[("x/data.pkl", pickle)]), part);
    }
    // One tensor mentioned many times costs no memory.
    let mut many = b"\x80\x02}".to_vec();
    let one = pickled("FloatStorage", &int(2), &int(0), &int(2), &int(1));
    many.extend(&one[3..one.len() - 2]);
    many.extend(b"q\0s");
    for _ in 0..50_000 {
        many.extend(b"X\x01\0\0\0wh\0s");
    }
    many.push(b'.');
    assert_eq!(read(&tensor_file(&many, &[0; 8])), Ok(50_001));
    check_allocations();
}

#[test]
fn types_that_are_not_known_are_refused_by_name() {
    let complex = pickled("ComplexFloatStorage", &int(1), &int(0), &int(1), &int(1));
    refused(&tensor_file(&complex, &[0; 8]), "`torch.ComplexFloatStorage`");
    // A type that is none.
    let other = pickled("float32", &int(1), &int(0), &int(1), &int(1));
    refused(&tensor_file(&other, &[0; 8]), "a storage in an unknown form");
    let header = r#"{"w":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    refused(&file, "`w` has type F8_E4M3");
    let bytes = Bytes::from_bytes_vec(vec![0; 8]);
    let tensor = Tensor::new("w".into(), DType::U64, vec![1], None, bytes);
    let file = Writer::new(vec![tensor]).into_bytes().unwrap().to_vec();
    refused(&file, "`w` has type U64");
    let big = archive(&[("x/data.pkl", b"\x80\x02}."), ("x/byteorder", b"big")]);
    refused(&big, "big-endian");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("x/data.pkl", SimpleFileOptions::default()).unwrap();
    zip.write_all(b"\x80\x02N.").unwrap();
    refused(&zip.finish().unwrap().into_inner(), "no dictionary");
}
