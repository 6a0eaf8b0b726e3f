//! Batches of pairs with random access.

use rayon::prelude::*;

use super::{Batch, Maker, Sender};
use crate::{error::DataError, record::Pair, source::PairSource};

/// Sends the batches of `order` until it ends, a batch fails or nobody listens.
pub(super) fn run(maker: &Maker, source: &dyn PairSource, order: &[usize], sender: &Sender) {
    let mut start = 0;
    for indices in order.chunks(maker.options.batch_size) {
        let batch = maker.pool.install(|| make(maker, source, indices, start));
        start += indices.len();
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

fn make(
    maker: &Maker,
    source: &dyn PairSource,
    indices: &[usize],
    start: usize,
) -> Result<Batch, DataError> {
    let mut batch = maker.batch(indices.len());
    let picture = 3 * batch.resolution * batch.resolution;
    batch.pairs = batch
        .pixels
        .par_chunks_mut(picture)
        .zip(batch.tokens.par_chunks_mut(batch.context_length))
        .zip(indices)
        .enumerate()
        .map(|(number, ((pixels, tokens), index))| {
            let pair = sample(maker, source, *index, start + number, pixels)?;
            Maker::text(&pair.text, tokens);
            Ok(pair)
        })
        .collect::<Result<Vec<Pair>, DataError>>()?;
    batch.consumed = start + indices.len();
    Ok(batch)
}

fn sample(
    maker: &Maker,
    source: &dyn PairSource,
    mut index: usize,
    position: usize,
    pixels: &mut [f32],
) -> Result<Pair, DataError> {
    let mut tries = source.len();
    loop {
        let pair = source.pair(index)?;
        let picture = source
            .image(index, &pair)
            .and_then(|bytes| maker.picture(&pair.image_id, &bytes, position, pixels));
        match picture {
            Ok(()) => return Ok(pair),
            Err(error) if maker.options.skip_bad_images && tries > 1 => {
                maker.skip(&error);
                index = (index + 1) % source.len();
                tries -= 1;
            }
            Err(error) => return Err(error),
        }
    }
}
