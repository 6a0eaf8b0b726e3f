//! Expansion of what names a data set: lists, braces and globs.

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Names a specification may expand to.
const MAX_NAMES: usize = 1_000_000;

/// Expands a comma-separated list with braces (`{a,b}`, `{000..099}`) and globs into paths.
///
/// A name that exists as it stands is taken literally. Matches of a glob are sorted.
///
/// # Errors
/// When a part is empty, a brace is open, or a glob matches nothing.
pub fn expand(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    if !spec.is_empty() && Path::new(spec).exists() {
        return Ok(vec![PathBuf::from(spec)]);
    }
    let mut paths = Vec::new();
    for part in split_list(spec).map_err(|reason| wrong(spec, reason))? {
        let part = part.trim();
        if part.is_empty() {
            return Err(wrong(spec, "an entry of the list is empty"));
        }
        let names = match Path::new(part).exists() {
            true => vec![part.to_string()],
            false => braces(part).map_err(|reason| wrong(spec, reason))?,
        };
        for name in names {
            glob_into(&name, &mut paths)?;
        }
        if paths.len() > MAX_NAMES {
            return Err(wrong(spec, "expands to more than a million names"));
        }
    }
    Ok(paths)
}

fn wrong(spec: &str, reason: impl std::fmt::Display) -> DataError {
    DataError::Config(format!("the data `{spec}`: {reason}"))
}

fn glob_into(name: &str, paths: &mut Vec<PathBuf>) -> Result<(), DataError> {
    if !name.contains(['*', '?', '[']) || Path::new(name).exists() {
        paths.push(PathBuf::from(name));
        return Ok(());
    }
    let before = paths.len();
    let entries = glob::glob(name).map_err(|error| wrong(name, error))?;
    for entry in entries {
        paths.push(entry.map_err(|error| {
            let path = error.path().to_path_buf();
            DataError::io(path)(error.into())
        })?);
    }
    match paths.len() > before {
        true => Ok(()),
        false => Err(wrong(name, "matches no file")),
    }
}

/// Splits at commas outside braces.
fn split_list(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1).ok_or("a `}` has no `{`")?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err("a `{` is not closed".to_string());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// Expands the braces of one name.
fn braces(text: &str) -> Result<Vec<String>, String> {
    let Some(open) = text.find('{') else { return Ok(vec![text.to_string()]) };
    let mut depth = 0_usize;
    let close = text[open..].char_indices().find_map(|(at, letter)| {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        (depth == 0).then_some(open + at)
    });
    let close = close.ok_or("a `{` is not closed")?;
    let (head, inner, tail) = (&text[..open], &text[open + 1..close], &text[close + 1..]);
    let mut middles = Vec::new();
    match range(inner)? {
        Some(numbers) => middles = numbers,
        None => {
            for choice in split_list(inner)? {
                middles.extend(braces(choice)?);
            }
        }
    }
    let tails = braces(tail)?;
    if middles.len().saturating_mul(tails.len()) > MAX_NAMES {
        return Err("expands to more than a million names".to_string());
    }
    let join = |middle: &String| -> Vec<String> {
        tails.iter().map(|tail| format!("{head}{middle}{tail}")).collect()
    };
    Ok(middles.iter().flat_map(join).collect())
}

/// The numbers of `000..099`, as wide as they are written.
fn range(text: &str) -> Result<Option<Vec<String>>, String> {
    let Some((first, last)) = text.split_once("..") else { return Ok(None) };
    let (Ok(from), Ok(to)) = (first.parse::<u64>(), last.parse::<u64>()) else {
        return Ok(None);
    };
    if from > to {
        return Err(format!("`{{{text}}}` counts down: write the smaller number first"));
    }
    if to - from >= MAX_NAMES as u64 {
        return Err(format!("`{{{text}}}` is more than a million names"));
    }
    let padded = [first, last].iter().any(|number| number.len() > 1 && number.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok(Some((from..=to).map(|number| format!("{number:0width$}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(spec: &str) -> Vec<String> {
        let paths = expand(spec).unwrap();
        paths.iter().map(|path| path.to_str().unwrap().replace('\\', "/")).collect()
    }

    #[test]
    fn lists_and_braces() {
        assert_eq!(names("a, b"), ["a", "b"]);
        assert_eq!(names("s-{08..11}.tar"), ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]);
        assert_eq!(names("s-{8..10}"), ["s-8", "s-9", "s-10"]);
        assert_eq!(names("{a,b}/x,c"), ["a/x", "b/x", "c"]);
        assert_eq!(names("{a,b{1..2}}-{x,y}"), ["a-x", "a-y", "b1-x", "b1-y", "b2-x", "b2-y"]);
        assert_eq!(names("{one}"), ["one"]);
        assert_eq!(names("{.a..b}"), [".a..b"]);
    }

    #[test]
    fn globs_are_sorted_and_literal_names_win() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        for name in ["b.tar", "a.tar", "c[1].tar", "d,e.tar"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(expand(&at("?.tar")).unwrap(), [at("a.tar"), at("b.tar")].map(PathBuf::from));
        assert_eq!(names(&at("c[1].tar")), [at("c[1].tar").replace('\\', "/")]);
        assert_eq!(names(&at("d,e.tar")).len(), 1);
        let error = expand(&at("*.none")).unwrap_err().to_string();
        assert!(error.contains("matches no file"), "{error}");
    }

    #[test]
    fn malformed_specifications_are_errors() {
        for spec in ["", "a,,b", "a{b", "a}b", "{5..1}", "{0..99999999}", "{1..1000}{1..1001}"] {
            assert!(matches!(expand(spec), Err(DataError::Config(_))), "{spec}");
        }
    }
}
