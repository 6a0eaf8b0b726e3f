//! The reference's JSON lines, read in blocks of lines, each block parsed by all cores.

use std::{fs::File, io::Read, path::Path};

use cn_clip_data::Id;
use memchr::{memchr_iter, memrchr};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    FeatureError, Features, Modality, RowProblem,
    checks::{SeenIds, check_values},
    quick,
};

/// Bytes read at a time; a block ends with the last whole line in it.
const BLOCK_BYTES: usize = 16 << 20;

/// Reads a file, `modality` saying which id its lines must carry.
///
/// Values are rounded to single precision the way the reference does (decimal to double to single).
/// Unknown keys are ignored. Needs memory for the values and one block of text.
pub(super) fn read(path: &Path, modality: Modality) -> Result<Features, FeatureError> {
    let mut file = File::open(path).map_err(FeatureError::read(path))?;
    let mut rows = Rows::default();
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    loop {
        let held = block.len();
        let read = file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block);
        let read = read.map_err(FeatureError::read(path))?;
        let whole = match memrchr(b'\n', &block[held..]) {
            Some(end) => held + end + 1,
            None if read == 0 => held,
            None => continue,
        };
        if whole == 0 {
            break;
        }
        rows.append(&block[..whole], modality).map_err(|(row, problem)| FeatureError::Line {
            path: path.to_owned(),
            line: row + 1,
            problem,
        })?;
        block.drain(..whole);
    }
    rows.finish().ok_or_else(|| FeatureError::Empty { path: path.to_owned() })
}

#[derive(Default)]
struct Rows {
    ids: Vec<Id>,
    dim: usize,
    data: Vec<f32>,
    seen: SeenIds,
}

impl Rows {
    /// Parses the lines of `block`; an error carries the row, from 0 in the file.
    fn append(&mut self, block: &[u8], modality: Modality) -> Result<(), (usize, RowProblem)> {
        let block = block.strip_suffix(b"\n").unwrap_or(block);
        let mut start = 0;
        let mut lines: Vec<&[u8]> = Vec::new();
        for end in memchr_iter(b'\n', block).chain([block.len()]) {
            lines.push(&block[start..end]);
            start = end + 1;
        }
        if self.ids.is_empty() {
            let (_, values) = parse_line(lines[0], modality).map_err(|problem| (0, problem))?;
            self.dim = values.len();
        }
        let held = self.data.len();
        self.data.resize(held + lines.len() * self.dim, 0.0);
        let ids: Vec<Result<Id, RowProblem>> = lines
            .par_iter()
            .zip(self.data[held..].par_chunks_mut(self.dim))
            .map(|(line, values)| parse_into(line, modality, values))
            .collect();
        for id in ids {
            let row = self.ids.len();
            let id = id.map_err(|problem| (row, problem))?;
            self.seen.add(row, &id).map_err(|problem| (row, problem))?;
            self.ids.push(id);
        }
        Ok(())
    }

    fn finish(self) -> Option<Features> {
        let Self { ids, dim, data, .. } = self;
        (!ids.is_empty()).then_some(Features { ids, dim, data })
    }
}

/// Parses a line into its place.
fn parse_into(line: &[u8], modality: Modality, out: &mut [f32]) -> Result<Id, RowProblem> {
    let id = match quick::parse_line(line, modality.id_key(), out) {
        Some(id) => id,
        None => {
            let (id, values) = parse_line(line, modality)?;
            check_values(&values, out.len())?;
            out.copy_from_slice(&values);
            id
        }
    };
    check_values(out, out.len())?;
    Ok(id)
}

#[derive(Deserialize)]
struct Line<'a> {
    image_id: Option<Id>,
    text_id: Option<Id>,
    #[serde(borrow)]
    feature: Option<&'a RawValue>,
}

fn parse_line(line: &[u8], modality: Modality) -> Result<(Id, Vec<f32>), RowProblem> {
    if line.trim_ascii().is_empty() {
        return Err(RowProblem::Json("the line is blank".to_owned()));
    }
    let parsed: Line<'_> = serde_json::from_slice(line).map_err(|error| explain(line, &error))?;
    let id = match modality {
        Modality::Image => parsed.image_id,
        Modality::Text => parsed.text_id,
    };
    let id = id.ok_or(RowProblem::MissingKey(modality.id_key()))?;
    let feature = parsed.feature.ok_or(RowProblem::MissingKey("feature"))?;
    Ok((id, parse_values(feature.get())?))
}

/// Values of a JSON list; `list` is known to be valid JSON.
fn parse_values(list: &str) -> Result<Vec<f32>, RowProblem> {
    let inner = list
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .ok_or_else(|| RowProblem::Json("\"feature\" is not a list of numbers".to_owned()))?;
    if inner.trim_ascii().is_empty() {
        return Err(RowProblem::EmptyFeature);
    }
    let number = |(position, text): (usize, &str)| match text.trim_ascii().parse::<f64>() {
        Ok(value) if (value as f32).is_finite() => Ok(value as f32),
        Ok(_) => Err(RowProblem::NotFinite { position }),
        Err(_) => Err(RowProblem::Json(format!("value {position} of the feature is not a number"))),
    };
    inner.split(',').enumerate().map(number).collect()
}

/// Python writes NaN and infinity as words that JSON does not know: names them as what they are.
fn explain(line: &[u8], error: &serde_json::Error) -> RowProblem {
    let word = |word: &[u8]| line.windows(word.len()).position(|window| window == word);
    let found = word(b"NaN").into_iter().chain(word(b"Infinity")).min();
    let list = found.and_then(|at| line[..at].iter().rposition(|&byte| byte == b'['));
    match (list, found) {
        (Some(list), Some(at)) => {
            let position = line[list..at].iter().filter(|&&byte| byte == b',').count();
            RowProblem::NotFinite { position }
        }
        _ => RowProblem::Json(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    fn read_text(text: &str) -> Result<Features, FeatureError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        fs::write(&path, text).unwrap();
        Features::read(&path, Modality::Image)
    }

    /// Line and problem of a bad file.
    fn problem(text: &str) -> (usize, RowProblem) {
        match read_text(text) {
            Err(FeatureError::Line { line, problem, .. }) => (line, problem),
            other => panic!("{other:?}"),
        }
    }

    const GOOD: &str = "{\"image_id\": 1, \"feature\": [0.5, -1]}\n";

    #[test]
    fn reference_files_are_read_whole() {
        let images =
            Features::read(&fixture("eval/valid_imgs.img_feat.jsonl"), Modality::Image).unwrap();
        assert_eq!((images.rows(), images.dim()), (80, 64));
        assert_eq!(images.ids()[0], Id::Int(325_608));
        assert_eq!(images.row(0)[..2], [0.072052, -0.132653]);
        let texts =
            Features::read(&fixture("eval/valid_texts.txt_feat.jsonl"), Modality::Text).unwrap();
        assert_eq!((texts.rows(), texts.dim()), (200, 64));
    }

    #[test]
    fn spacing_order_of_keys_and_other_keys_do_not_matter() {
        let features = read_text(
            "{\"feature\":[ 1e-3 ,2E1,-0],\"image_id\":\"a\",\"text\":\"NaN\"}\r\n  {\"image_id\" : -5 , \"feature\" : [1,2,3]}",
        )
        .unwrap();
        assert_eq!(features.ids(), [Id::Text("a".to_owned()), Id::Int(-5)]);
        assert_eq!(features.data(), [0.001, 20.0, 0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn not_finite_values_are_named() {
        for value in ["NaN", "Infinity", "-Infinity", "1e39", "-1e400"] {
            let text = format!("{GOOD}{{\"image_id\": 2, \"feature\": [0.5, {value}]}}\n");
            assert_eq!(problem(&text), (2, RowProblem::NotFinite { position: 1 }), "{value}");
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let line = |line: &str| problem(&format!("{GOOD}{line}\n{GOOD}"));
        assert_eq!(
            line("{\"image_id\": 2, \"feature\": [1]}"),
            (2, RowProblem::Dimension { found: 1, expected: 2 })
        );
        assert_eq!(line("{\"image_id\": 2, \"feature\": []}"), (2, RowProblem::EmptyFeature));
        assert_eq!(line("{\"image_id\": 2, \"feature\": [0, 0.0]}"), (2, RowProblem::Zero));
        assert_eq!(line("{\"image_id\": 2}"), (2, RowProblem::MissingKey("feature")));
        assert_eq!(
            line("{\"text_id\": 2, \"feature\": [1, 2]}"),
            (2, RowProblem::MissingKey("image_id"))
        );
        assert_eq!(
            line("{\"image_id\": 1, \"feature\": [1, 2]}"),
            (2, RowProblem::Duplicate { id: Id::Int(1), first: 0 })
        );
        for malformed in [
            "",
            "oops",
            "[1]",
            "{\"image_id\": 2, \"feature\": [1, 2]",
            "{\"image_id\": 2, \"feature\": [1, 2]} x",
            "{\"image_id\": 2, \"feature\": \"[1, 2]\"}",
            "{\"image_id\": 2, \"feature\": [1, \"2\"]}",
            "{\"image_id\": 2, \"feature\": [1, null]}",
            "{\"image_id\": 2, \"feature\": [[1, 2]]}",
            "{\"image_id\": 2, \"feature\": [1 2]}",
            "{\"image_id\": 2.5, \"feature\": [1, 2]}",
            "{\"image_id\": true, \"feature\": [1, 2]}",
            "{\"image_id\": 2, \"image_id\": 3, \"feature\": [1, 2]}",
        ] {
            let (line, problem) = line(malformed);
            assert_eq!(line, 2, "{malformed}");
            assert!(matches!(problem, RowProblem::Json(_)), "{malformed}: {problem}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_malformed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        fs::write(&path, b"{\"image_id\": \"\xff\", \"feature\": [1]}\n").unwrap();
        let error = Features::read(&path, Modality::Image).unwrap_err();
        assert!(matches!(error, FeatureError::Line { line: 1, .. }), "{error}");
        assert!(error.to_string().contains("feats.jsonl:1: malformed JSON"), "{error}");
    }

    #[test]
    fn empty_and_missing_files_are_errors() {
        assert!(matches!(read_text(""), Err(FeatureError::Empty { .. })));
        let missing = Features::read(Path::new("none.jsonl"), Modality::Text);
        assert!(matches!(missing, Err(FeatureError::Read { .. })));
    }

    #[test]
    fn lines_longer_than_a_block_and_across_blocks_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.jsonl");
        let long = vec!["0.25"; BLOCK_BYTES / 5].join(", ");
        let lines = (0..2).map(|id| format!("{{\"image_id\": {id}, \"feature\": [{long}]}}"));
        fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let features = Features::read(&path, Modality::Image).unwrap();
        assert_eq!((features.rows(), features.dim()), (2, BLOCK_BYTES / 5));
        assert!(features.data().iter().all(|&value| value == 0.25));
    }
}
