//! Label files: an id, a tab and the name of its class on each line.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use cn_clip_data::Id;

use super::ProbeError;

/// Reads the class names of `ids`, in their order.
///
/// # Errors
/// [`ProbeError::LabelLine`] for a line that is no id, tab and name, or whose id comes twice;
/// [`ProbeError::Unpaired`] for an id without a label and a label whose id is not among `ids`.
pub fn read_labels(path: &Path, ids: &[Id]) -> Result<Vec<String>, ProbeError> {
    let bytes =
        fs::read(path).map_err(|source| ProbeError::Read { path: path.to_owned(), source })?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut labels: HashMap<Id, (usize, &str)> = HashMap::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let bad = |reason: String| ProbeError::LabelLine {
            path: path.to_owned(),
            line: index + 1,
            reason,
        };
        let line = str::from_utf8(line).map_err(|_| bad("the line is not UTF-8".to_owned()))?;
        let (id, label) =
            line.split_once('\t').ok_or_else(|| bad("the line has no tab".to_owned()))?;
        let label = label.trim();
        if label.is_empty() {
            return Err(bad(format!("id {id} has no class name")));
        }
        if let Some((first, _)) = labels.insert(Id::from(id), (index + 1, label)) {
            return Err(bad(format!("id {id} has a label already, at line {first}")));
        }
    }
    let unpaired = |id: &Id, has, lacks| ProbeError::Unpaired {
        path: path.to_owned(),
        id: id.to_string(),
        has,
        lacks,
    };
    let found: Result<Vec<String>, ProbeError> = ids
        .iter()
        .map(|id| {
            let label = labels.get(id).ok_or_else(|| unpaired(id, "a feature", "label"))?;
            Ok(label.1.to_owned())
        })
        .collect();
    let found = found?;
    if labels.len() > ids.len() {
        let known: std::collections::HashSet<&Id> = ids.iter().collect();
        let mut extra: Vec<_> = labels.iter().filter(|(id, _)| !known.contains(id)).collect();
        extra.sort_by_key(|(_, (line, _))| *line);
        if let Some((id, _)) = extra.first() {
            return Err(unpaired(id, "a label", "feature"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], ids: &[Id]) -> Result<Vec<String>, ProbeError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.tsv");
        fs::write(&path, bytes).unwrap();
        read_labels(&path, ids)
    }

    #[test]
    fn labels_come_in_the_order_of_the_ids() {
        let ids = [Id::Int(7), Id::Text("a/b.png".to_owned()), Id::Int(-1)];
        let text = "\u{feff}-1\t猫\r\na/b.png\t狗 子\n7\t猫\n";
        assert_eq!(read(text.as_bytes(), &ids).unwrap(), ["猫", "狗 子", "猫"]);
    }

    #[test]
    fn bad_lines_and_unpaired_ids_are_named() {
        let ids = [Id::Int(1), Id::Int(2)];
        let error = |bytes: &[u8]| read(bytes, &ids).unwrap_err().to_string();
        for (bytes, line, reason) in [
            (&b"1 a\n2\tb"[..], 1, "no tab"),
            (b"1\ta\n\n2\tb", 2, "no tab"),
            (b"", 1, "no tab"),
            (b"1\ta\n2\t \n", 2, "id 2 has no class name"),
            (b"1\ta\n2\t\xff", 2, "not UTF-8"),
            (b"1\ta\n2\tb\n1\ta", 3, "id 1 has a label already, at line 1"),
        ] {
            let error = error(bytes);
            assert!(error.contains(&format!("labels.tsv:{line}: ")), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        assert!(error(b"1\ta\n").contains("id 2 has a feature but no label"));
        assert!(error(b"1\ta\n9\tb\n2\tb\n8\tc").contains("id 9 has a label but no feature"));
        let missing = read_labels(Path::new("none.tsv"), &ids).unwrap_err();
        assert!(matches!(missing, ProbeError::Read { .. }));
    }
}
