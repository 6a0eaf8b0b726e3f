use std::fs;

use super::*;
use crate::features::open;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

#[test]
fn reference_files_come_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.jsonl");
    for (name, modality) in [
        ("extract/valid_imgs.img_feat.jsonl", Modality::Image),
        ("extract/valid_texts.txt_feat.jsonl", Modality::Text),
    ] {
        Features::read(&fixture(name), modality).unwrap().write(&copy, modality).unwrap();
        let (written, original) = (fs::read(&copy).unwrap(), fs::read(fixture(name)).unwrap());
        assert!(written == original, "{name}");
    }
}

/// These files hold decimals of six digits, not widened singles: the values survive, not the text.
#[test]
fn values_survive_the_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.jsonl");
    let features =
        Features::read(&fixture("eval/valid_imgs.img_feat.jsonl"), Modality::Image).unwrap();
    features.write(&copy, Modality::Image).unwrap();
    assert_eq!(Features::read(&copy, Modality::Image).unwrap(), features);
}

#[test]
fn small_values_and_text_ids_print_as_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feats.jsonl");
    let mut writer = FeatureWriter::create(&path, Modality::Text, 4).unwrap();
    writer.write(&Id::Text("图1".to_owned()), &[1e-5, 0.0, -1.0, 1.0 / 3.0]).unwrap();
    assert!(!path.exists());
    assert_eq!(writer.finish().unwrap(), 1);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"text_id\": \"\\u56fe1\", \"feature\": [9.999999747378752e-06, 0.0, -1.0, 0.3333333432674408]}\n"
    );
}

#[test]
fn bad_rows_are_refused_and_leave_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feats.jsonl");
    fs::write(&path, "old").unwrap();
    let mut writer = FeatureWriter::create(&path, Modality::Image, 2).unwrap();
    writer.write(&Id::Int(1), &[1.0, 2.0]).unwrap();
    let mut problem = |id, row: &[f32]| match writer.write(&Id::Int(id), row) {
        Err(FeatureError::Row { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(2, &[1.0, f32::NAN]), RowProblem::NotFinite { position: 1 });
    assert_eq!(problem(2, &[0.0, 0.0]), RowProblem::Zero);
    assert_eq!(problem(2, &[1.0]), RowProblem::Dimension { found: 1, expected: 2 });
    assert_eq!(problem(1, &[1.0, 1.0]), RowProblem::Duplicate { id: Id::Int(1), first: 0 });
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn nothing_written_and_missing_folders_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feats.jsonl");
    let writer = FeatureWriter::create(&path, Modality::Image, 2).unwrap();
    assert!(matches!(writer.finish(), Err(FeatureError::Empty { .. })));
    assert!(!path.exists());
    let missing = FeatureWriter::create(&folder.path().join("none/f"), Modality::Image, 2);
    assert!(matches!(missing, Err(FeatureError::Write { .. })));
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk_is_reported() {
    let mut writer = FeatureWriter::create(Path::new("/dev/full"), Modality::Image, 1).unwrap();
    let written = writer.write(&Id::Int(1), &[1.0]).and_then(|()| writer.finish().map(drop));
    assert!(matches!(written, Err(FeatureError::Write { .. })));
}

/// Ids of every kind, and values of every magnitude.
fn samples(ids: &[Id]) -> Features {
    let value = |index: usize| match index % 7 {
        0 => 0.0,
        1 => -f32::from_bits(index as u32 + 1),
        2 => f32::MAX / (index + 1) as f32,
        _ => (index as f32 * 0.7).sin() / 3.0,
    };
    Features::new(ids.to_vec(), 7, (0..ids.len() * 7).map(value).collect()).unwrap()
}

fn id_lists() -> [Vec<Id>; 3] {
    let texts = ["a/图 1.jpg", "x\"y\\z", "\u{1}", "-", "007", "tab\there", "😀"];
    let texts: Vec<Id> = texts.iter().map(|text| Id::Text((*text).to_owned())).collect();
    let numbers: Vec<Id> = [0, -1, 7, i64::MAX, i64::MIN, 12].map(Id::Int).to_vec();
    [numbers.clone(), texts.clone(), [texts, numbers].concat()]
}

#[test]
fn every_form_gives_back_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    for (ids, modality) in id_lists().iter().zip([Modality::Image, Modality::Text, Modality::Image])
    {
        let features = samples(ids);
        for format in FeatureFormat::ALL {
            let path = folder.path().join(format!("feats.{format}"));
            features.write(&path, modality).unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let read = Features::read(&path, modality).unwrap();
            assert_eq!(read.ids(), ids, "{format}");
            assert_eq!(bits(read.data()), bits(features.data()), "{format}");
            // In blocks too, and by content where the name says nothing.
            let unnamed = folder.path().join("unnamed");
            fs::rename(&path, &unnamed).unwrap();
            let beside = folder.path().join("unnamed.ids.jsonl");
            let _ = fs::rename(folder.path().join("feats.ids.jsonl"), beside);
            let source = open(&unnamed, modality).unwrap();
            assert_eq!((source.ids(), source.dim()), (ids.as_slice(), 7));
            let mut buffer = Vec::new();
            for rows in [0..2, 3..6, 2..5, 0..ids.len(), 4..4] {
                let block = source.read_block(rows.clone(), &mut buffer).unwrap();
                let expected = &features.data()[rows.start * 7..rows.end * 7];
                assert_eq!(bits(block), bits(expected), "{format} {rows:?}");
            }
        }
    }
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no parts stay: {left:?}");
}

fn settings(value: &str) -> Settings {
    Settings::from([("weights".to_owned(), value.to_owned())])
}

/// A part that a process has left which wrote `rows`.
fn interrupted(path: &Path, format: FeatureFormat, features: &Features, rows: usize) {
    let mut writer = FeatureWriter::create_as(path, format, Modality::Image, 7)
        .and_then(|writer| writer.keep(&settings("a")))
        .unwrap();
    let values = &features.data()[..rows * 7];
    writer.write_all(&features.ids()[..rows], values).unwrap();
    drop(writer);
    assert!(!path.exists());
}

fn resume(path: &Path, format: FeatureFormat) -> Result<FeatureWriter, FeatureError> {
    FeatureWriter::resume(path, format, Modality::Image, 7, &settings("a"))
}

/// Whatever is left of a part, the file comes out the same.
#[test]
fn a_part_cut_off_anywhere_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let (path, whole) = (folder.path().join("feats"), folder.path().join("whole"));
    let ids = id_lists()[2].clone();
    let features = samples(&ids);
    for format in FeatureFormat::ALL {
        let mut writer = FeatureWriter::create_as(&whole, format, Modality::Image, 7).unwrap();
        writer.write_all(&ids, features.data()).unwrap();
        writer.finish().unwrap();
        let suffixes: &[&str] = if format == FeatureFormat::Jsonl { &[""] } else { &["", ".ids"] };
        for suffix in suffixes {
            interrupted(&path, format, &features, 9);
            let part = Part::path(&path, suffix);
            let length = fs::metadata(&part).unwrap().len();
            let mut kept = 0;
            for length in (0..=length).step_by(13).chain([length]) {
                interrupted(&path, format, &features, 9);
                File::options().write(true).open(&part).unwrap().set_len(length).unwrap();
                let mut writer = resume(&path, format).unwrap();
                let rows = writer.rows();
                assert!(rows >= kept);
                kept = rows;
                let stored: Vec<Id> = writer.stored_ids().unwrap().map(Result::unwrap).collect();
                assert_eq!(stored, ids[..rows]);
                writer.write_all(&ids[rows..], &features.data()[rows * 7..]).unwrap();
                assert_eq!(writer.finish().unwrap(), ids.len());
                assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap(), "{format} {length}");
                fs::remove_file(&path).unwrap();
            }
            assert_eq!(kept, 9);
        }
    }
}

#[test]
fn only_the_same_settings_continue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feats.npy");
    let features = samples(&id_lists()[0]);
    interrupted(&path, FeatureFormat::Npy, &features, 2);
    let refused = |dim, value: &str| {
        let settings = settings(value);
        FeatureWriter::resume(&path, FeatureFormat::Npy, Modality::Image, dim, &settings)
            .err()
            .unwrap()
            .to_string()
    };
    let error = refused(7, "b");
    assert!(error.contains("begun with weights `a`, and this run has `b`"), "{error}");
    assert!(refused(8, "a").contains("values per feature `7`"));
    // Nothing was lost.
    let mut writer = resume(&path, FeatureFormat::Npy).unwrap();
    assert_eq!(writer.rows(), 2);
    // Ids of the part count as seen.
    let error = writer.write(&features.ids()[1], features.row(1)).unwrap_err();
    assert!(error.to_string().contains("has been seen before, as entry 2"), "{error}");
    // Nobody else writes at the same time.
    let error = resume(&path, FeatureFormat::Npy).err().unwrap();
    let FeatureError::Write { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("by another process"), "{source}");
}

#[test]
fn without_a_part_a_file_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feats.jsonl");
    let writer = resume(&path, FeatureFormat::Jsonl).unwrap();
    assert_eq!(writer.rows(), 0);
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing to continue");
}

#[cfg(unix)]
#[test]
fn binary_forms_need_a_regular_file() {
    let null = Path::new("/dev/null");
    let error = FeatureWriter::create_as(null, FeatureFormat::Npy, Modality::Image, 7);
    assert!(error.err().unwrap().to_string().contains("no regular file"));
}
