//! Batches of a stream.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use rayon::prelude::*;

use super::{Batch, Maker, Sender};
use crate::{
    error::DataError,
    forms::{Sample, Samples},
    record::Pair,
};

/// Pictures in a row that may be left out.
const MAX_SKIPPED: usize = 10_000;
/// Samples read ahead at most.
const MAX_AHEAD: usize = 1024;

/// Sends the batches of a stream until it ends, a batch fails or nobody listens. The stream is read
/// by a thread of its own.
pub(super) fn run(maker: &Maker, samples: Samples, sender: &Sender) {
    let (reader, incoming) = sync_channel(maker.options.batch_size.min(MAX_AHEAD));
    thread::spawn(move || {
        for sample in samples {
            if reader.send(sample).is_err() {
                return;
            }
        }
    });
    let mut stream = Stream { maker, incoming, consumed: 0, position: 0, skipped: 0 };
    while let Some(batch) = stream.batch().transpose() {
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

struct Stream<'a> {
    maker: &'a Maker,
    incoming: Receiver<Result<Sample, DataError>>,
    /// Samples taken from the stream.
    consumed: usize,
    /// Samples handed on.
    position: usize,
    /// Samples left out since the last good one.
    skipped: usize,
}

/// The place of a sample in a batch.
struct Slot<'a> {
    position: usize,
    pixels: &'a mut [f32],
    tokens: &'a mut [i32],
    pair: Option<Pair>,
}

impl Stream<'_> {
    /// The next batch; `None` at the end of the stream.
    fn batch(&mut self) -> Result<Option<Batch>, DataError> {
        let maker = self.maker;
        let mut batch = maker.batch(maker.options.batch_size);
        let (picture, context) = (3 * batch.resolution * batch.resolution, batch.context_length);
        let pixels = batch.pixels.chunks_exact_mut(picture);
        let mut slots: Vec<Slot> = pixels
            .zip(batch.tokens.chunks_exact_mut(context))
            .zip(self.position..)
            .map(|((pixels, tokens), position)| Slot { position, pixels, tokens, pair: None })
            .collect();
        loop {
            let free = slots.iter_mut().filter(|slot| slot.pair.is_none());
            let mut filling = Vec::new();
            for slot in free {
                let Ok(sample) = self.incoming.recv() else { break };
                self.consumed += 1;
                filling.push((slot, sample));
            }
            if filling.is_empty() {
                break;
            }
            let fill = |(slot, sample): (&mut Slot, _)| maker.fill(slot, sample);
            let results: Vec<Result<(), DataError>> =
                maker.pool.install(|| filling.into_par_iter().map(fill).collect());
            results.into_iter().try_for_each(|result| self.check(result))?;
        }
        let pairs: Vec<Option<Pair>> = slots.into_iter().map(|slot| slot.pair).collect();
        // Slots stay empty only where the stream has ended.
        let filled =
            pairs.iter().enumerate().filter_map(|(slot, pair)| pair.is_some().then_some(slot));
        for (to, from) in filled.enumerate() {
            batch.pixels.copy_within(from * picture..(from + 1) * picture, to * picture);
            batch.tokens.copy_within(from * context..(from + 1) * context, to * context);
        }
        batch.pairs = pairs.into_iter().flatten().collect();
        batch.size = batch.pairs.len();
        batch.pixels.truncate(batch.size * picture);
        batch.tokens.truncate(batch.size * context);
        batch.consumed = self.consumed;
        self.position += batch.size;
        Ok((batch.size > 0).then_some(batch))
    }

    /// Lets a bad picture pass where that is wanted.
    fn check(&mut self, result: Result<(), DataError>) -> Result<(), DataError> {
        match result {
            Ok(()) => self.skipped = 0,
            Err(error @ DataError::Image { .. })
                if self.maker.options.skip_bad_images && self.skipped < MAX_SKIPPED =>
            {
                self.skipped += 1;
                self.maker.skip(&error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Maker {
    fn fill(&self, slot: &mut Slot, sample: Result<Sample, DataError>) -> Result<(), DataError> {
        let Sample { pair, image } = sample?;
        self.picture(&pair.image_id, &image, slot.position, slot.pixels)?;
        Self::text(&pair.text, slot.tokens);
        slot.pair = Some(pair);
        Ok(())
    }
}
