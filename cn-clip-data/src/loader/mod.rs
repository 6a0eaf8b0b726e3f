//! Batches: pictures decoded and texts tokenised on all cores, ahead of the consumer.

mod pairs;
mod stream;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rayon::ThreadPool;

use crate::{
    error::DataError,
    forms::Samples,
    image::PixelTransform,
    record::{Id, Pair},
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
    /// Samples that this batch and those before it took from the order or the stream, with those
    /// left out: the place to go on at.
    pub consumed: usize,
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
    /// Positions from one sample of the order to the next: the number of processes where each
    /// takes every so many-th sample of an epoch.
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
    /// Batches to come, where their number is known.
    remaining: Option<usize>,
}

type Sender = SyncSender<Result<Batch, DataError>>;

/// Decodes pictures and tokenises texts on the threads of a loader.
struct Maker {
    transform: Arc<dyn PixelTransform>,
    options: LoaderOptions,
    skipped: Arc<AtomicUsize>,
    pool: ThreadPool,
}

impl Loader {
    /// Batches of the pairs `order`, in that order; the last may be smaller.
    pub fn new(
        source: Arc<dyn PairSource>,
        transform: Arc<dyn PixelTransform>,
        order: Vec<usize>,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let samples = order.len();
        Self::start(transform, options, Some(samples), move |maker, sender| {
            pairs::run(&maker, source.as_ref(), &order, &sender);
        })
    }

    /// Batches of the samples of a stream, in their order; the last may be smaller.
    ///
    /// With `skip_bad_images` a sample whose picture cannot be decoded is left out, and the next
    /// takes its place and its position. [`Batch::consumed`] tells where to go on.
    pub fn stream(
        samples: Samples,
        transform: Arc<dyn PixelTransform>,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let count = samples.size_hint().1;
        Self::start(transform, options, count, move |maker, sender| {
            stream::run(&maker, samples, &sender);
        })
    }

    /// Starts the thread that makes the batches of `samples` samples.
    fn start(
        transform: Arc<dyn PixelTransform>,
        options: LoaderOptions,
        samples: Option<usize>,
        run: impl FnOnce(Maker, Sender) + Send + 'static,
    ) -> Result<Self, DataError> {
        if options.batch_size == 0 {
            return Err(DataError::Config("the batch size must be at least 1".to_string()));
        }
        if options.context_length == 0 {
            return Err(DataError::Config("the context length must be at least 1".to_string()));
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
        let remaining = samples.map(|samples| samples.div_ceil(options.batch_size));
        let maker = Maker { transform, options, skipped: skipped.clone(), pool };
        thread::spawn(move || run(maker, sender));
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
        let failed = batch.is_err();
        self.remaining = self.remaining.map(|left| if failed { 0 } else { left.saturating_sub(1) });
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.remaining)
    }
}

impl Maker {
    /// An empty batch.
    fn batch(&self, size: usize) -> Batch {
        let (resolution, context_length) =
            (self.transform.resolution(), self.options.context_length);
        Batch {
            pixels: vec![0.0; size * 3 * resolution * resolution],
            tokens: vec![0; size * context_length],
            pairs: Vec::new(),
            size,
            resolution,
            context_length,
            consumed: 0,
        }
    }

    /// Fills the pixels of a picture.
    fn picture(
        &self,
        id: &Id,
        bytes: &[u8],
        position: usize,
        pixels: &mut [f32],
    ) -> Result<(), DataError> {
        let position = self.options.first + position * self.options.stride;
        let seed = mix(self.options.seed, position as u64);
        let failed = |reason: String| DataError::Image { id: id.clone(), reason };
        // Decoders are other people's code: a panic there costs one picture, not the run.
        let applied = catch_unwind(AssertUnwindSafe(|| self.transform.apply(bytes, seed, pixels)));
        match applied {
            Ok(result) => result.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed("the decoder panicked".to_string())),
        }
    }

    /// Fills the tokens of a text.
    fn text(text: &str, tokens: &mut [i32]) {
        Tokenizer::chinese().encode_into(&dataset_text(text), tokens);
    }

    /// Counts a picture that was left out.
    fn skip(&self, error: &DataError) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("skipped: {error}");
    }
}

/// Joins two numbers to a seed.
pub fn mix(a: u64, b: u64) -> u64 {
    let value = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x632b_e59b_d9b4_e019);
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ (value >> 32)
}
