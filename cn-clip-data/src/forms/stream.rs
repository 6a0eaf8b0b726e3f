//! A stream over shards of any form.

use std::{
    collections::HashMap,
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::{
    Part, Sample, SampleStream, Samples,
    places::{Place, Places},
};
use crate::{
    error::DataError,
    loader::mix,
    record::{Id, Pair},
};

/// Shards of one form.
pub(super) trait Shards: Send + Sync + 'static {
    /// A sample while it waits in the shuffle buffer.
    type Entry: Send + 'static;

    /// Samples of each shard; none is 0.
    fn counts(&self) -> &Arc<[usize]>;

    /// The samples of a shard, as many as were counted.
    fn load(&self, shard: usize) -> Result<Vec<Self::Entry>, DataError>;

    /// Reads a sample.
    fn content(&self, shard: usize, entry: Self::Entry) -> Result<Content, DataError>;
}

/// A sample as it is stored.
pub(super) struct Content {
    pub image_id: Id,
    pub text_id: Option<Id>,
    /// At least one.
    pub captions: Vec<String>,
    pub image: Vec<u8>,
}

impl Content {
    /// The sample with one of its captions.
    fn choose(mut self, seed: u64) -> Sample {
        let chosen = match self.captions.len() {
            0 | 1 => 0,
            count => (mix(seed, stable_hash(&self.image_id)) % count as u64) as usize,
        };
        let text_id = self.text_id(chosen);
        let text = if chosen < self.captions.len() {
            self.captions.swap_remove(chosen)
        } else {
            String::new()
        };
        Sample { pair: Pair { image_id: self.image_id, text_id, text }, image: self.image }
    }

    /// A sample for each caption.
    fn all(self) -> Vec<Result<Sample, DataError>> {
        let sample = |(number, text): (usize, &String)| {
            let (image_id, text_id) = (self.image_id.clone(), self.text_id(number));
            let pair = Pair { image_id, text_id, text: text.clone() };
            Ok(Sample { pair, image: self.image.clone() })
        };
        self.captions.iter().enumerate().map(sample).collect()
    }

    fn text_id(&self, number: usize) -> Id {
        let id = self.text_id.as_ref().unwrap_or(&self.image_id);
        match self.captions.len() {
            0 | 1 => id.clone(),
            _ => Id::Text(format!("{id}#{number}")),
        }
    }
}

/// FNV-1a: the same on every machine and for every release.
fn stable_hash(id: &Id) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    id.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A stream over shards.
pub(super) struct Stream<S>(Arc<S>);

impl<S: Shards> Stream<S> {
    pub fn new(shards: S) -> Self {
        Self(Arc::new(shards))
    }
}

impl<S: Shards> SampleStream for Stream<S> {
    fn len(&self) -> usize {
        self.0.counts().iter().sum()
    }

    fn num_images(&self) -> Option<usize> {
        Some(self.len())
    }

    fn samples(&self, part: &Part) -> Samples {
        if part.rank >= part.world {
            let reason = format!("rank {} of {} does not exist", part.rank, part.world);
            return Box::new(std::iter::once(Err(DataError::Config(reason))));
        }
        Box::new(Reader {
            shards: self.0.clone(),
            places: Places::new(self.0.counts().clone(), *part),
            loaded: HashMap::new(),
            ahead: None,
            left: part.take,
            seed: mix(part.seed, part.epoch),
        })
    }

    fn pairs(&self) -> Samples {
        let shards = self.0.clone();
        let loaded = (0..shards.counts().len()).flat_map(move |shard| {
            let (entries, failed) = match shards.load(shard) {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            let shards = shards.clone();
            let contents = entries.into_iter().map(move |entry| shards.content(shard, entry));
            contents.chain(failed)
        });
        let samples = loaded.flat_map(|content| match content {
            Ok(content) => content.all(),
            Err(error) => vec![Err(error)],
        });
        let mut ended = false;
        Box::new(samples.take_while(move |sample| {
            let ending = std::mem::replace(&mut ended, ends(sample));
            !ending
        }))
    }
}

/// Whether nothing can follow this in a stream.
fn ends(sample: &Result<Sample, DataError>) -> bool {
    !matches!(sample, Ok(_) | Err(DataError::Image { .. }))
}

type Loaded<E> = Vec<Option<E>>;
type Loading<E> = JoinHandle<Result<Loaded<E>, DataError>>;

struct Reader<S: Shards> {
    shards: Arc<S>,
    places: Places,
    /// Shards that have samples in the buffer.
    loaded: HashMap<usize, Loaded<S::Entry>>,
    /// A shard that is being loaded.
    ahead: Option<(usize, Loading<S::Entry>)>,
    left: usize,
    seed: u64,
}

impl<S: Shards> Reader<S> {
    fn entry(&mut self, place: Place) -> Result<S::Entry, DataError> {
        let Place { shard, number, last } = place;
        if !self.loaded.contains_key(&shard) {
            let entries = match self.ahead.take() {
                Some((ahead, handle)) if ahead == shard => {
                    let failed = |_| DataError::Config(format!("reading shard {shard} panicked"));
                    handle.join().map_err(failed)??
                }
                other => {
                    self.ahead = other;
                    load(self.shards.as_ref(), shard)?
                }
            };
            self.loaded.insert(shard, entries);
        }
        let entries = self.loaded.get_mut(&shard);
        let entry = entries.and_then(|entries| entries.get_mut(number)?.take());
        if last {
            self.loaded.remove(&shard);
        }
        self.load_ahead();
        entry.ok_or_else(|| DataError::Config(format!("sample {number} of shard {shard} is gone")))
    }

    /// Loads in the background what will be needed next.
    fn load_ahead(&mut self) {
        if self.ahead.is_some() || self.left == 0 {
            return;
        }
        let needed = self.places.upcoming().into_iter().flatten();
        let Some(shard) = needed.into_iter().find(|shard| !self.loaded.contains_key(shard)) else {
            return;
        };
        let shards = self.shards.clone();
        self.ahead = Some((shard, thread::spawn(move || load(shards.as_ref(), shard))));
    }
}

fn load<S: Shards>(shards: &S, shard: usize) -> Result<Loaded<S::Entry>, DataError> {
    Ok(shards.load(shard)?.into_iter().map(Some).collect())
}

impl<S: Shards> Iterator for Reader<S> {
    type Item = Result<Sample, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let place = self.places.next();
        let content = self.entry(place).and_then(|entry| self.shards.content(place.shard, entry));
        let sample = content.map(|content| content.choose(self.seed));
        if ends(&sample) {
            self.left = 0;
        }
        Some(sample)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}
