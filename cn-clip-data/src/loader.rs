//! Batches: pictures decoded and texts tokenised on all cores, ahead of the consumer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use rayon::prelude::*;

use crate::{
    error::DataError,
    image::PixelTransform,
    record::Pair,
    source::PairSource,
    tokenizer::{Tokenizer, dataset_text},
};

/// Pairs ready for a model.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Pixels `[size, 3, resolution, resolution]`, row-major.
    pub pixels: Vec<f32>,
    /// Token ids `[size, context_length]`, row-major, zero-padded.
    pub tokens: Vec<i32>,
    /// The pairs, texts as stored.
    pub pairs: Vec<Pair>,
    /// Number of pairs.
    pub size: usize,
    /// Height and width of the pictures.
    pub resolution: usize,
    /// Tokens per text.
    pub context_length: usize,
}

/// How batches are made.
#[derive(Clone)]
pub struct LoaderOptions {
    /// Pairs of a batch.
    pub batch_size: usize,
    /// Tokens per text.
    pub context_length: usize,
    /// Threads that decode; 0 = one per core.
    pub workers: usize,
    /// Batches held ready.
    pub prefetch: usize,
    /// Seed of augmentation: a sample's seed is made of this and its position in the epoch.
    pub seed: u64,
    /// Position in the epoch of the first of the order: not 0 when a part is done already.
    pub first: usize,
    /// Distance of positions in the epoch: the number of ranks that share it.
    pub stride: usize,
    /// Whether a picture that cannot be decoded is replaced by the next pair of the data set, with
    /// a warning, instead of ending the epoch.
    pub skip_bad_images: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 64,
            context_length: 52,
            workers: 0,
            prefetch: 2,
            seed: 0,
            first: 0,
            stride: 1,
            skip_bad_images: false,
        }
    }
}

/// An iterator over the batches of one epoch. Dropping it stops its threads.
pub struct Loader {
    batches: Receiver<Result<Batch, DataError>>,
    skipped: Arc<AtomicUsize>,
    remaining: usize,
}

struct Maker {
    source: Arc<dyn PairSource>,
    transform: Arc<dyn PixelTransform>,
    order: Vec<usize>,
    options: LoaderOptions,
    skipped: Arc<AtomicUsize>,
}

impl Loader {
    /// Batches of the pairs `order`, in that order; the last may be smaller.
    pub fn new(
        source: Arc<dyn PairSource>,
        transform: Arc<dyn PixelTransform>,
        order: Vec<usize>,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        if options.batch_size == 0 {
            return Err(DataError::Config("the batch size must be at least 1".to_string()));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.workers)
            .thread_name(|index| format!("decode-{index}"))
            .build()
            .map_err(|error| {
                DataError::Config(format!("cannot start decoding threads: {error}"))
            })?;
        let (sender, batches) = sync_channel(options.prefetch.max(1));
        let skipped = Arc::new(AtomicUsize::new(0));
        let remaining = order.len().div_ceil(options.batch_size);
        let maker = Maker { source, transform, order, options, skipped: skipped.clone() };
        thread::spawn(move || {
            let size = maker.options.batch_size;
            for start in (0..maker.order.len()).step_by(size) {
                let end = (start + size).min(maker.order.len());
                let batch = pool.install(|| maker.batch(start..end));
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Self { batches, skipped, remaining })
    }

    /// Pictures replaced since the last call because they could not be decoded.
    pub fn take_skipped(&self) -> usize {
        self.skipped.swap(0, Ordering::Relaxed)
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.recv().ok()?;
        self.remaining = if batch.is_ok() { self.remaining.saturating_sub(1) } else { 0 };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.remaining))
    }
}

impl Maker {
    fn batch(&self, range: std::ops::Range<usize>) -> Result<Batch, DataError> {
        let (size, resolution) = (range.len(), self.transform.resolution());
        let context_length = self.options.context_length;
        let mut pixels = vec![0.0; size * 3 * resolution * resolution];
        let mut tokens = vec![0; size * context_length];
        let pairs = pixels
            .par_chunks_mut(3 * resolution * resolution)
            .zip(tokens.par_chunks_mut(context_length))
            .zip(range)
            .map(|((pixels, tokens), position)| self.sample(position, pixels, tokens))
            .collect::<Result<Vec<Pair>, DataError>>()?;
        Ok(Batch { pixels, tokens, pairs, size, resolution, context_length })
    }

    fn sample(
        &self,
        position: usize,
        pixels: &mut [f32],
        tokens: &mut [i32],
    ) -> Result<Pair, DataError> {
        let mut index = self.order[position];
        let mut tries = self.source.len();
        let pair = loop {
            let pair = self.source.pair(index)?;
            match self.picture(&pair, position, pixels) {
                Ok(()) => break pair,
                Err(error) if self.options.skip_bad_images && tries > 1 => {
                    self.skipped.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("skipped: {error}");
                    index = (index + 1) % self.source.len();
                    tries -= 1;
                }
                Err(error) => return Err(error),
            }
        };
        Tokenizer::chinese().encode_into(&dataset_text(&pair.text), tokens);
        Ok(pair)
    }

    fn picture(&self, pair: &Pair, position: usize, pixels: &mut [f32]) -> Result<(), DataError> {
        let bytes = self.source.image(&pair.image_id)?;
        let seed =
            mix(self.options.seed, (self.options.first + position * self.options.stride) as u64);
        let failed = |reason: String| DataError::Image { id: pair.image_id.clone(), reason };
        // Decoders are other people's code: a panic there costs one picture, not the run.
        let applied = catch_unwind(AssertUnwindSafe(|| self.transform.apply(&bytes, seed, pixels)));
        match applied {
            Ok(result) => result.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed("the decoder panicked".to_string())),
        }
    }
}

/// Joins two numbers to a seed.
pub fn mix(a: u64, b: u64) -> u64 {
    let value = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x632b_e59b_d9b4_e019);
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ (value >> 32)
}
