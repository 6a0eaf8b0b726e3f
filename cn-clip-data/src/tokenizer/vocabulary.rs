//! Word pieces and the greedy longest match over them.

use std::{collections::HashMap, path::PathBuf};

use rustc_hash::FxBuildHasher;

use super::normalize::{Kind, kind, words};

/// Words of more characters become `[UNK]`.
const MAX_WORD: usize = 200;
/// Characters with a direct entry: the Basic Multilingual Plane.
const DIRECT: usize = 0x10000;

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A word piece appears twice.
    #[error("vocabulary line {line}: `{token}` is already in line {first}")]
    Duplicate {
        /// The line, counted from 1.
        line: usize,
        /// The line where it was seen first.
        first: usize,
        /// The word piece.
        token: String,
    },
    /// A special word piece is not there.
    #[error("the vocabulary lacks `{0}`: it must be one of a BERT model")]
    Missing(&'static str),
    /// A line that does not have the right form.
    #[error("{name}:{line}: {reason}")]
    Line {
        /// The file.
        name: String,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// Word pieces by text and by id.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    /// Pieces that begin a word.
    initial: HashMap<String, i32, FxBuildHasher>,
    /// Pieces that continue a word, without `##`.
    continuation: HashMap<String, i32, FxBuildHasher>,
    /// Id of each character that is a piece by itself; `unknown` for others.
    direct: Vec<i32>,
    /// Bytes of the longest piece.
    longest: usize,
    unknown: i32,
    cls: i32,
    sep: i32,
}

impl Vocabulary {
    pub fn parse(text: &str) -> Result<Self, TokenizerError> {
        let tokens: Vec<String> = text.lines().map(|line| line.trim_end().to_string()).collect();
        let mut lines: HashMap<&str, usize> = HashMap::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            if let Some(first) = lines.insert(token, index + 1) {
                return Err(TokenizerError::Duplicate {
                    line: index + 1,
                    first,
                    token: token.clone(),
                });
            }
        }
        let special = |name: &'static str| match lines.get(name) {
            Some(line) => Ok((line - 1) as i32),
            None => Err(TokenizerError::Missing(name)),
        };
        special("[PAD]")?;
        let (unknown, cls, sep) = (special("[UNK]")?, special("[CLS]")?, special("[SEP]")?);
        let mut vocabulary = Self { unknown, cls, sep, ..Self::default() };
        vocabulary.direct = vec![unknown; DIRECT];
        for (id, token) in tokens.iter().enumerate() {
            let id = id as i32;
            match token.strip_prefix("##") {
                Some(rest) if !rest.is_empty() => {
                    vocabulary.continuation.insert(rest.to_string(), id);
                }
                _ => {
                    vocabulary.initial.insert(token.clone(), id);
                }
            }
            vocabulary.longest = vocabulary.longest.max(token.len());
            let mut chars = token.chars();
            if let (Some(only), None) = (chars.next(), chars.next())
                && (only as usize) < DIRECT
            {
                vocabulary.direct[only as usize] = id;
            }
        }
        vocabulary.tokens = tokens;
        Ok(vocabulary)
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn token(&self, id: i32) -> Option<&str> {
        self.tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    }

    pub fn id(&self, token: &str) -> Option<i32> {
        match token.strip_prefix("##").and_then(|rest| self.continuation.get(rest)) {
            Some(id) => Some(*id),
            None => self.initial.get(token).copied(),
        }
    }

    pub fn cls(&self) -> i32 {
        self.cls
    }

    pub fn sep(&self) -> i32 {
        self.sep
    }

    /// Calls `emit` with the ids of a text, at most `limit` of them.
    pub fn encode(&self, text: &str, limit: usize, mut emit: impl FnMut(i32)) {
        let mut left = limit;
        let mut emit = |id: i32| {
            if left > 0 {
                left -= 1;
                emit(id);
            }
            left > 0
        };
        // The word being read: ASCII is lower-cased on the way; other letters are normalised when
        // the word is complete.
        let (mut word, mut plain) = (String::new(), true);
        if limit == 0 {
            return;
        }
        for c in text.chars() {
            match kind(c) {
                Kind::Letter if c.is_ascii() => word.push(c.to_ascii_lowercase()),
                // Ideographs are words by themselves that no normalisation changes.
                Kind::Ideograph => {
                    if !self.flush(&mut word, &mut plain, &mut emit) {
                        return;
                    }
                    let id = self.direct.get(c as usize).copied();
                    let id = id.unwrap_or_else(|| self.lookup(c));
                    if !emit(id) {
                        return;
                    }
                }
                Kind::Compatibility => {
                    if !self.flush(&mut word, &mut plain, &mut emit) {
                        return;
                    }
                    word.push(c);
                    plain = false;
                    if !self.flush(&mut word, &mut plain, &mut emit) {
                        return;
                    }
                }
                Kind::AsciiPunctuation => {
                    // Between ASCII letters it ends a word; in others it is found again when the
                    // whole word has been lower-cased.
                    if plain {
                        if !self.flush(&mut word, &mut plain, &mut emit) {
                            return;
                        }
                        let id = self.direct.get(c as usize).copied().unwrap_or(self.unknown);
                        if !emit(id) {
                            return;
                        }
                    } else {
                        word.push(c);
                    }
                }
                Kind::Space => {
                    if !self.flush(&mut word, &mut plain, &mut emit) {
                        return;
                    }
                }
                Kind::Dropped => {}
                Kind::Letter => {
                    // ASCII letters before it were lower-cased already; they are only context for
                    // a sigma, which letters of either case are alike.
                    plain = false;
                    word.push(c);
                }
            }
        }
        self.flush(&mut word, &mut plain, &mut emit);
    }

    /// Emits the pieces of a complete word and clears it.
    fn flush(
        &self,
        word: &mut String,
        plain: &mut bool,
        emit: &mut impl FnMut(i32) -> bool,
    ) -> bool {
        if word.is_empty() {
            *plain = true;
            return true;
        }
        let go_on = match *plain {
            true => self.word(word, emit),
            false => {
                let mut go_on = true;
                words(word, |part| {
                    go_on = go_on && self.word(part, emit);
                    go_on
                });
                go_on
            }
        };
        word.clear();
        *plain = true;
        go_on
    }

    fn lookup(&self, c: char) -> i32 {
        self.initial.get(c.encode_utf8(&mut [0; 4]) as &str).copied().unwrap_or(self.unknown)
    }

    /// Emits the pieces of one normalised word: the longest that fits, again and again; `[UNK]`
    /// for the whole word if something is left over.
    fn word(&self, word: &str, emit: &mut impl FnMut(i32) -> bool) -> bool {
        if word.len() > MAX_WORD && word.chars().count() > MAX_WORD {
            return emit(self.unknown);
        }
        let mut pieces = [0; MAX_WORD];
        let (mut count, mut start) = (0, 0);
        while start < word.len() {
            let table = if start == 0 { &self.initial } else { &self.continuation };
            let mut end = word.len().min(start + self.longest);
            while !word.is_char_boundary(end) {
                end -= 1;
            }
            let found = loop {
                if end <= start {
                    break None;
                }
                if let Some(id) = table.get(&word[start..end]) {
                    break Some(*id);
                }
                end -= 1;
                while !word.is_char_boundary(end) {
                    end -= 1;
                }
            };
            let Some(id) = found else { return emit(self.unknown) };
            pieces[count] = id;
            count += 1;
            start = end;
        }
        pieces[..count].iter().all(|id| emit(*id))
    }
}
