//! The BERT tokenizer of Chinese-CLIP, identical to `cn_clip/clip/bert_tokenizer.py`.
//!
//! The `tokenizers` crate cannot be exact here: its normaliser lower-cases character by character
//! (the reference lower-cases words, where a final sigma differs) and has other ranges of CJK
//! characters. Its WordPiece model agrees and serves as the oracle of the tests. This one is also
//! several times faster on short Chinese texts (`examples/tokenizer_throughput.rs`), because a CJK
//! character is one table look-up.
//!
//! The recordings were made with Unicode 14.0; characters assigned since then may be classified
//! otherwise here.

pub mod jsonl;
mod normalize;
mod vocabulary;

use std::{borrow::Cow, path::Path, sync::LazyLock};

use rayon::prelude::*;

pub use vocabulary::TokenizerError;
use vocabulary::Vocabulary;

/// Id of `[PAD]`.
pub const PAD: i32 = 0;
/// Default number of tokens per text, `[CLS]` and `[SEP]` included.
pub const CONTEXT_LENGTH: usize = 52;

static CHINESE: LazyLock<Tokenizer> = LazyLock::new(|| {
    // The embedded file is checked by a test.
    Tokenizer::from_vocab(include_str!("../../assets/vocab.txt")).unwrap_or_default()
});

/// Turns text into ids of word pieces.
#[derive(Debug, Default)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
}

impl Tokenizer {
    /// The tokenizer of the official models, with 21,128 word pieces.
    pub fn chinese() -> &'static Self {
        &CHINESE
    }

    /// A tokenizer of one's own vocabulary: one word piece per line, the id is the line number
    /// counted from 0.
    pub fn from_vocab(text: &str) -> Result<Self, TokenizerError> {
        Ok(Self { vocabulary: Vocabulary::parse(text)? })
    }

    /// As [`from_vocab`](Self::from_vocab), from a file.
    pub fn from_vocab_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenizerError::Io { path: path.to_path_buf(), source })?;
        Self::from_vocab(&text)
    }

    /// Number of word pieces.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The word piece of an id.
    pub fn id_to_token(&self, id: i32) -> Option<&str> {
        self.vocabulary.token(id)
    }

    /// The id of a word piece.
    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        self.vocabulary.id(token)
    }

    /// Word pieces of a text, without `[CLS]` and `[SEP]` and however many there are.
    pub fn tokenize(&self, text: &str) -> Vec<&str> {
        let mut ids = Vec::new();
        self.vocabulary.encode(text, usize::MAX, |id| ids.push(id));
        ids.into_iter().filter_map(|id| self.id_to_token(id)).collect()
    }

    /// Writes `[CLS]`, as many ids as fit, `[SEP]`, and zeros up to `out.len()`, the context
    /// length. A length below 2 has room for no text: what fits of `[CLS]` is written.
    pub fn encode_into(&self, text: &str, out: &mut [i32]) {
        out.fill(PAD);
        let (room, mut used) = (out.len().saturating_sub(2), 0);
        if let [first, rest @ ..] = out {
            *first = self.vocabulary.cls();
            self.vocabulary.encode(text, room, |id| {
                rest[used] = id;
                used += 1;
            });
            if let Some(end) = rest.get_mut(used) {
                *end = self.vocabulary.sep();
            }
        }
    }

    /// Ids of one text: `[context_length]`.
    pub fn encode(&self, text: &str, context_length: usize) -> Vec<i32> {
        let mut ids = vec![PAD; context_length];
        self.encode_into(text, &mut ids);
        ids
    }

    /// Ids of many texts, in parallel: `[texts, context_length]`, row-major.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        context_length: usize,
    ) -> Vec<i32> {
        let mut ids = vec![PAD; texts.len() * context_length];
        if context_length > 0 {
            ids.par_chunks_mut(context_length)
                .zip(texts)
                .for_each(|(row, text)| self.encode_into(text.as_ref(), row));
        }
        ids
    }
}

/// The form in which data sets and zero-shot prompts are tokenised: lower-cased, with straight
/// double quotes (`cn_clip/training/data.py`).
pub fn dataset_text(text: &str) -> Cow<'_, str> {
    // From the CJK punctuation marks to the last ideographs nothing has a case.
    let plain =
        |c: char| c.is_ascii() && !c.is_ascii_uppercase() || ('\u{3000}'..='\u{9fff}').contains(&c);
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.to_lowercase().replace(['“', '”'], "\""))
}

#[cfg(test)]
mod tests;
