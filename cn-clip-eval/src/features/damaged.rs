//! Tests of files that are damaged or hold something else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cn_clip_data::Id;
use tempfile::TempDir;

use super::*;

/// Files `f.npy`, `f.safetensors` and `f.parquet` of three rows of two values.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let ids = vec![Id::Int(1), Id::Int(2), Id::Int(3)];
    let features = Features::new(ids, 2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    for format in FeatureFormat::ALL {
        features.write(&file(&folder, format), Modality::Image).unwrap();
    }
    folder
}

fn file(folder: &TempDir, format: FeatureFormat) -> PathBuf {
    folder.path().join(format!("f.{format}"))
}

/// What is said of a file, which must be the same of reading it whole and of opening it.
fn error(path: &Path) -> String {
    let read = Features::read(path, Modality::Image).unwrap_err().to_string();
    let opened = open(path, Modality::Image)
        .and_then(|source| source.read_block(0..source.rows(), &mut Vec::new()).map(drop));
    assert_eq!(opened.unwrap_err().to_string(), read);
    assert!(read.contains(&path.with_extension("").display().to_string()), "{read}");
    read
}

#[test]
fn empty_files_have_no_features() {
    let folder = folder();
    for format in FeatureFormat::ALL {
        fs::write(file(&folder, format), "").unwrap();
        assert!(error(&file(&folder, format)).contains("no features in this file"), "{format}");
    }
}

#[test]
fn files_cut_off_anywhere_are_errors() {
    let folder = folder();
    for format in [FeatureFormat::Npy, FeatureFormat::Safetensors, FeatureFormat::Parquet] {
        let path = file(&folder, format);
        let bytes = fs::read(&path).unwrap();
        for length in (1..bytes.len()).step_by(5).chain([bytes.len() - 1]) {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = error(&path);
            assert!(!error.is_empty(), "{format} {length}");
        }
        fs::write(&path, [bytes.as_slice(), b"more"].concat()).unwrap();
        assert!(!error(&path).is_empty());
    }
}

#[test]
fn damaged_bytes_never_crash() {
    let folder = folder();
    for format in [FeatureFormat::Npy, FeatureFormat::Safetensors, FeatureFormat::Parquet] {
        let path = file(&folder, format);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            for value in [0, 0xff, bytes[at] ^ 1] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                fs::write(&path, damaged).unwrap();
                // Another value, id or name may be sound; whatever it is, it is a result.
                if let Ok(features) = Features::read(&path, Modality::Image) {
                    assert_eq!(features.data().len(), features.rows() * features.dim());
                }
            }
        }
    }
}

/// A numpy file of these header fields and bytes, with ids 1, 2, ….
fn npy(folder: &TempDir, fields: &str, values: &[u8], ids: &str) -> PathBuf {
    let path = folder.path().join("f.npy");
    let header = format!("{{{fields}}}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    fs::write(&path, bytes).unwrap();
    fs::write(folder.path().join("f.ids.jsonl"), ids).unwrap();
    path
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

const FIELDS: &str = "'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), ";

#[test]
fn arrays_of_other_kinds_are_explained() {
    let folder = folder();
    let values = floats(&[1.0, 2.0, 3.0, 4.0]);
    for (fields, said) in [
        ("'descr': '<i8', 'fortran_order': False, 'shape': (2, 2)", "holds '<i8'"),
        ("'descr': '>f4', 'fortran_order': False, 'shape': (2, 2)", "holds '>f4'"),
        ("'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)", "Fortran order"),
        ("'descr': '<f4', 'fortran_order': False, 'shape': (4,)", "of shape [4]"),
        ("'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2)", "of shape [1, 2, 2]"),
        ("'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)", "cut off"),
        ("'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999)", "cut off"),
        ("'descr': '<f4', 'fortran_order': False", "no `shape`"),
        ("'fortran_order': False, 'shape': (2, 2)", "no `descr`"),
        ("'descr': '<f4', 'shape': (2, 2)", "no `fortran_order`"),
        ("'descr': '<f4', 'fortran_order': False, 'shape': (x, 2)", "no shape"),
    ] {
        let error = error(&npy(&folder, fields, &values, "1\n2\n"));
        assert!(error.contains(said), "{fields}: {error}");
    }
}

#[test]
fn half_and_double_precision_are_read() {
    let folder = folder();
    let half: Vec<u8> = [1.5, -2.0, 0.25, 3.0]
        .iter()
        .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
        .collect();
    let double: Vec<u8> =
        [1.5_f64, -2.0, 0.25, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    for (descr, bytes) in [("<f2", half), ("<f8", double)] {
        let fields = FIELDS.replace("<f4", descr);
        let path = npy(&folder, &fields, &bytes, "1\n\"b\"\n");
        let features = Features::read(&path, Modality::Image).unwrap();
        assert_eq!(features.data(), [1.5, -2.0, 0.25, 3.0]);
        assert_eq!(features.ids(), [Id::Int(1), Id::Text("b".to_owned())]);
    }
}

#[test]
fn bad_rows_name_file_row_and_id() {
    let folder = folder();
    let bad = |values: &[f32], ids: &str| error(&npy(&folder, FIELDS, &floats(values), ids));
    let text = bad(&[1.0, 2.0, f32::NAN, 4.0], "7\n8\n");
    assert!(text.contains("f.npy: row 1 (id 8): value 0 of the feature is NaN"), "{text}");
    let text = bad(&[f32::INFINITY, 2.0, 3.0, 4.0], "7\n8\n");
    assert!(text.contains("row 0 (id 7): value 0"), "{text}");
    let text = bad(&[1.0, 2.0, 0.0, -0.0], "7\n\"x\"\n");
    assert!(text.contains("row 1 (id x): all values of the feature are zero"), "{text}");
    let text = bad(&[1.0, 2.0, 3.0, 4.0], "7\n7\n");
    assert!(text.contains("row 1 (id 7): id 7 has been seen before, as entry 1"), "{text}");
    // Values that only a sum overflows are sound.
    let path = npy(&folder, FIELDS, &floats(&[f32::MAX, f32::MAX, 1.0, 2.0]), "7\n8\n");
    assert!(Features::read(&path, Modality::Image).is_ok());
}

#[test]
fn ids_beside_an_array_must_fit() {
    let folder = folder();
    let values = floats(&[1.0, 2.0, 3.0, 4.0]);
    let text = error(&npy(&folder, FIELDS, &values, "1\n"));
    assert!(text.contains("has 2 rows, but") && text.contains("f.ids.jsonl has 1 ids"), "{text}");
    let path = npy(&folder, FIELDS, &values, "1\n2.5\n");
    let text = Features::read(&path, Modality::Image).unwrap_err().to_string();
    assert!(text.contains("f.ids.jsonl:2: malformed JSON"), "{text}");
    fs::remove_file(folder.path().join("f.ids.jsonl")).unwrap();
    let text = error(&path);
    assert!(text.contains("has no ids") && text.contains("f.ids.jsonl"), "{text}");
    fs::write(folder.path().join("f.ids.txt"), "a b\n12\n").unwrap();
    let features = Features::read(&path, Modality::Image).unwrap();
    assert_eq!(features.ids(), [Id::Text("a b".to_owned()), Id::Int(12)]);
}

#[test]
fn files_of_the_other_modality_or_without_columns_are_told() {
    let folder = folder();
    let path = file(&folder, FeatureFormat::Parquet);
    let text = Features::read(&path, Modality::Text).unwrap_err().to_string();
    assert!(text.contains("has no column `text_id` or `id`"), "{text}");
    assert!(text.contains("its columns are image_id, feature.list.element"), "{text}");
    let text = Features::read(&file(&folder, FeatureFormat::Jsonl), Modality::Text).unwrap_err();
    assert!(text.to_string().contains("f.jsonl:1: no \"text_id\""), "{text}");
    let other = folder.path().join("other.safetensors");
    let tensor =
        ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, vec![1, 1], &[0; 4]);
    ::safetensors::serialize_to_file([("weights", tensor.unwrap())], None, &other).unwrap();
    assert!(error(&other).contains("has no tensor `features`"));
}
