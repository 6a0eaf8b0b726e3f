//! A look at a data set before training: what is in it, and what will go wrong.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rayon::prelude::*;

use crate::{
    error::DataError,
    forms::{Part, Sample, Source},
    image::Picture,
    record::{Id, Pair},
    tokenizer::{Tokenizer, dataset_text},
};

/// The word piece for what the vocabulary does not know.
const UNKNOWN: &str = "[UNK]";
/// Pictures named of those that cannot be read.
const MOST_NAMED: usize = 5;

/// How much is looked at.
#[derive(Debug, Clone, Copy)]
pub struct InspectOptions {
    /// Pairs at most, spread over the data set.
    pub pairs: usize,
    /// Of these, pairs whose picture is decoded.
    pub pictures: usize,
    /// Tokens per text, `[CLS]` and `[SEP]` included.
    pub context_length: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inspection {
    /// Whether the data set is read as a stream.
    pub stream: bool,
    /// Pairs of the data set.
    pub total: usize,
    /// Pairs looked at.
    pub pairs: usize,
    /// Pictures among them.
    pub images: usize,
    /// Captions among them that differ.
    pub captions: usize,
    /// Ordered couples of these pairs that share a picture or a caption.
    pub couples: u64,
    /// Texts longer than the context length.
    pub cut: usize,
    /// Texts without anything to read.
    pub blank: usize,
    /// Word pieces.
    pub tokens: usize,
    /// Word pieces that stand for what the vocabulary does not know.
    pub unknown: usize,
    /// Pictures decoded, or tried to.
    pub tried: usize,
    /// Pictures that cannot be read.
    pub unreadable: usize,
    /// Why, for the first of them.
    pub reasons: Vec<String>,
}

impl Inspection {
    /// Share of the other pairs of a batch, chosen at random, that are positives of a pair too and
    /// would count as negatives.
    pub fn false_negatives(&self) -> f64 {
        let count = self.pairs as f64;
        if self.pairs < 2 { 0.0 } else { self.couples as f64 / (count * (count - 1.0)) }
    }

    /// Share of the texts that are cut.
    pub fn cut_share(&self) -> f64 {
        self.cut as f64 / self.pairs.max(1) as f64
    }

    /// Share of the word pieces that are unknown.
    pub fn unknown_share(&self) -> f64 {
        self.unknown as f64 / self.tokens.max(1) as f64
    }
}

/// Looks at a data set.
///
/// # Errors
/// When pairs cannot be read; a picture that cannot is a finding.
pub fn inspect(source: &Source, options: &InspectOptions) -> Result<Inspection, DataError> {
    let (pairs, pictures) = match source {
        Source::Pairs(source) => {
            let count = options.pairs.min(source.len());
            let places: Vec<usize> =
                (0..count).map(|at| at * source.len() / count.max(1)).collect();
            let pairs = places
                .par_iter()
                .map(|index| source.pair(*index))
                .collect::<Result<Vec<Pair>, DataError>>()?;
            let tried = options.pictures.min(count);
            let pictures = (0..tried).into_par_iter().filter_map(|at| {
                let at = at * count / tried;
                picture(source.image(places[at], &pairs[at]), &pairs[at].image_id)
            });
            let bad: Vec<String> = pictures.collect();
            (pairs, (tried, bad))
        }
        Source::Stream(stream) => {
            let part = Part { take: options.pairs.min(stream.len()), ..Part::default() };
            let (mut pairs, mut tried, mut bad) = (Vec::new(), 0, Vec::new());
            for sample in stream.samples(&part) {
                match sample {
                    Ok(Sample { pair, image }) => {
                        if tried < options.pictures {
                            tried += 1;
                            bad.extend(picture(Ok(image), &pair.image_id));
                        }
                        pairs.push(pair);
                    }
                    Err(error @ DataError::Image { .. }) => {
                        tried += 1;
                        bad.push(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
            (pairs, (tried, bad))
        }
    };
    let (tried, mut reasons) = pictures;
    let unreadable = reasons.len();
    reasons.truncate(MOST_NAMED);
    let mut found = Inspection {
        stream: matches!(source, Source::Stream(_)),
        total: source.len(),
        tried,
        unreadable,
        reasons,
        ..texts(&pairs, options)
    };
    duplicates(&pairs, &mut found);
    Ok(found)
}

/// Why a picture cannot be read, if it cannot.
fn picture(bytes: Result<Vec<u8>, DataError>, id: &Id) -> Option<String> {
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => return Some(error.to_string()),
    };
    // As in training, a panic of a decoder is an error of that picture.
    match catch_unwind(AssertUnwindSafe(|| Picture::decode(&bytes).map(drop))) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("image {id}: {error}")),
        Err(_) => Some(format!("image {id}: the decoder panicked")),
    }
}

fn texts(pairs: &[Pair], options: &InspectOptions) -> Inspection {
    let tokenizer = Tokenizer::chinese();
    let room = options.context_length.saturating_sub(2);
    let look = |pair: &Pair| {
        let pieces = tokenizer.tokenize(&dataset_text(&pair.text)).into_iter();
        let (tokens, unknown) = pieces.fold((0, 0), |(all, unknown), piece| {
            (all + 1, unknown + usize::from(piece == UNKNOWN))
        });
        Inspection {
            cut: usize::from(tokens > room),
            blank: usize::from(tokens == 0),
            tokens,
            unknown,
            ..Inspection::default()
        }
    };
    let add = |a: Inspection, b: Inspection| Inspection {
        cut: a.cut + b.cut,
        blank: a.blank + b.blank,
        tokens: a.tokens + b.tokens,
        unknown: a.unknown + b.unknown,
        ..a
    };
    let sum = pairs.par_iter().map(look).reduce(Inspection::default, add);
    Inspection { pairs: pairs.len(), ..sum }
}

fn duplicates(pairs: &[Pair], found: &mut Inspection) {
    let (mut images, mut captions) = (HashMap::new(), HashMap::new());
    let mut both = HashMap::new();
    for pair in pairs {
        let caption = pair.text.trim();
        *images.entry(&pair.image_id).or_insert(0u64) += 1;
        *captions.entry(caption).or_insert(0u64) += 1;
        *both.entry((&pair.image_id, caption)).or_insert(0u64) += 1;
    }
    let couples =
        |counts: &mut dyn Iterator<Item = &u64>| -> u64 { counts.map(|n| n * (n - 1)).sum() };
    found.images = images.len();
    found.captions = captions.len();
    // What shares both is counted with pictures and with captions.
    found.couples = couples(&mut images.values()) + couples(&mut captions.values())
        - couples(&mut both.values());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::source::MemoryDataset;

    fn pair(image: i64, text_id: i64, text: &str) -> Pair {
        Pair { image_id: image.into(), text_id: text_id.into(), text: text.to_string() }
    }

    #[test]
    fn what_is_wrong_is_counted() {
        let pairs = vec![
            pair(1, 1, "红色的花"),
            pair(1, 2, "花"),
            pair(2, 3, "花 "),
            pair(3, 4, " "),
            pair(4, 5, "一二三四五六七八九"),
            pair(1, 2, "花"),
        ];
        let mut images: HashMap<Id, Vec<u8>> =
            (1..4).map(|id: i64| (id.into(), b"not a picture".to_vec())).collect();
        let mut png = Vec::new();
        let picture = image::DynamicImage::new_rgb8(2, 2);
        let format = image::ImageFormat::Png;
        picture.write_to(&mut std::io::Cursor::new(&mut png), format).unwrap();
        images.insert(4.into(), png);
        let source = Source::Pairs(Arc::new(MemoryDataset { pairs, images }));
        let options = InspectOptions { pairs: 100, pictures: 100, context_length: 10 };
        let found = inspect(&source, &options).unwrap();
        assert_eq!((found.total, found.pairs, found.images, found.captions), (6, 6, 4, 4));
        assert_eq!((found.cut, found.blank, found.unknown), (1, 1, 0));
        assert_eq!((found.tried, found.unreadable), (6, 5));
        assert!(found.reasons[0].contains("image 1"), "{:?}", found.reasons);
        // Picture 1 in three pairs: 6 couples; one caption in three: 6; twice the same pair: 2.
        assert_eq!(found.couples, 6 + 6 - 2);
        assert!((found.false_negatives() - 10.0 / 30.0).abs() < 1e-12);
        // A part of it, spread over the whole.
        let few = InspectOptions { pairs: 3, pictures: 1, ..options };
        let found = inspect(&source, &few).unwrap();
        assert_eq!((found.total, found.pairs, found.tried), (6, 3, 1));
    }
}
