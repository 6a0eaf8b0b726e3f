//! Rows of sequences that differ in length, and of their heads.

use std::ops::Range;

/// Sequences of a batch, without their padding: the rows of all, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Sequences {
    /// At least 1 each.
    pub lengths: Vec<usize>,
    /// Whether only the first row of each asks, or all.
    pub first_only: bool,
}

impl Sequences {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Rows of a sequence that ask.
    pub fn queries(&self, length: usize) -> usize {
        if self.first_only { 1 } else { length }
    }

    /// Sequence, position and row of each row that asks.
    pub fn asking(&self) -> Vec<Asking> {
        let mut asking = Vec::with_capacity(self.rows());
        let mut start = 0;
        for (sample, length) in self.lengths.iter().enumerate() {
            let place = |position| Asking { sample, position, row: start + position };
            asking.extend((0..self.queries(*length)).map(place));
            start += length;
        }
        asking
    }
}

/// A row that asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    pub sample: usize,
    pub position: usize,
    pub row: usize,
}

/// Rows whose heads lie apart.
pub(super) struct ByHead<'a> {
    values: &'a [f32],
    head_width: usize,
    /// Start of the first head of a row, and how far it is to the next.
    places: Vec<(usize, usize)>,
}

impl ByHead<'_> {
    /// Copies columns of a row.
    #[inline(always)]
    pub fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let (start, stride) = self.places[row];
        let mut column = columns.start;
        while column < columns.end {
            let (head, within) = (column / self.head_width, column % self.head_width);
            let count = (self.head_width - within).min(columns.end - column);
            let values = &self.values[start + head * stride + within..][..count];
            out[column - columns.start..][..count].copy_from_slice(values);
            column += count;
        }
    }
}

/// The context by rows.
pub(super) fn context_rows<'a>(
    sequences: &Sequences,
    context: &'a [f32],
    heads: usize,
    width: usize,
) -> ByHead<'a> {
    let head_width = width / heads;
    let (mut places, mut start) = (Vec::with_capacity(sequences.rows()), 0);
    for length in &sequences.lengths {
        let queries = sequences.queries(*length);
        places.extend((0..queries).map(|row| (start + row * head_width, queries * head_width)));
        start += queries * width;
    }
    ByHead { values: context, head_width, places }
}

/// What [`Attention::backward`] returns by rows: gradients of queries, keys and values.
pub(super) fn gradient_rows<'a>(
    sequences: &Sequences,
    gradients: &'a [f32],
    heads: usize,
    width: usize,
) -> [ByHead<'a>; 3] {
    let head_width = width / heads;
    let mut places = [const { Vec::new() }; 3];
    let mut start = 0;
    for length in &sequences.lengths {
        let queries = sequences.queries(*length);
        let stride = (queries + 2 * length) * head_width;
        let starts = [(0, queries), (queries, *length), (queries + length, *length)];
        for (places, (before, count)) in places.iter_mut().zip(starts) {
            let place = |row| (start + (before + row) * head_width, stride);
            places.extend((0..count).map(place));
        }
        start += stride * heads;
    }
    places.map(|places| ByHead { values: gradients, head_width, places })
}
