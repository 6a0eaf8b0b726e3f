//! Tokens to the input of the first layer of a BERT.

use super::{
    math::{Norm, normalise},
    norm::each_row,
};

/// Word, position and token-type embeddings, and the norm of their sum.
#[derive(Debug)]
pub(super) struct Words<'a> {
    /// `[vocab_size, hidden]`.
    pub words: &'a [f32],
    /// `[max_positions, hidden]`.
    pub positions: &'a [f32],
    /// Of the first token type: `[hidden]`.
    pub kind: &'a [f32],
    pub norm: Norm<&'a [f32]>,
}

/// An id and its place in its text.
pub(super) type Token = (usize, usize);

impl Words<'_> {
    /// Embeddings of tokens, `[tokens, hidden]`; `None` if there is none for one of them.
    pub fn embed(&self, tokens: &[Token]) -> Option<Vec<f32>> {
        let width = self.kind.len();
        let has = |table: &[f32], row: usize| row < table.len() / width.max(1);
        if !tokens.iter().all(|(id, place)| has(self.words, *id) && has(self.positions, *place)) {
            return None;
        }
        let mut x = vec![0.0; tokens.len() * width];
        each_row(
            &mut x,
            width,
            #[inline(always)]
            |index, out| {
                let (id, place) = tokens[index];
                let word = &self.words[id * width..][..width];
                let position = &self.positions[place * width..][..width];
                let parts = word.iter().zip(position.iter().zip(self.kind));
                let pairs = out.iter_mut().zip(parts);
                pairs.for_each(|(out, (word, (position, kind)))| *out = word + (position + kind));
                normalise(out, &self.norm);
            },
        );
        Some(x)
    }
}
