//! Inner products of queries and candidates, in two steps that search and recall share.
//!
//! Whole tiles are multiplied in single precision; that is where the time goes. Its rounding depends
//! on the device, the driver and the shape of the tile (CUDA may even take TF32), so a tile only
//! tells which pairs are worth a look: a [`Row`] says how far it can be off, and pairs nearer to a
//! decision than that are settled by [`Row::exact`], a dot product in doubles on the CPU. So
//! rankings, ties included, are the same on every device and with every block size.
//!
//! On the CPU every core multiplies small tiles that stay in its cache and looks through them at
//! once; features come from memory or from a file, a few rows at a time ([`FeatureSource`]).

mod exact;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};
use cn_clip_model::device::is_host;
use rayon::prelude::*;
use thiserror::Error;

use crate::features::{FeatureError, FeatureSource};
use crate::matrix::{Matrix, multiply};
use exact::{Arithmetic, lengths, longest};

pub(crate) use exact::exact;

/// Candidates held at a time, unless told otherwise (`--eval-batch-size`).
pub const DEFAULT_BLOCK: usize = 32_768;

/// Queries multiplied at once.
const QUERY_CHUNK: usize = 256;
/// Values of the queries held at a time at most, unless one chunk has more: 32 MiB.
const QUERY_VALUES: usize = 1 << 23;
/// Candidates that one core multiplies at once.
const HOST_ROWS: usize = 1024;
/// Candidates on a device at a time at most: a tile of scores then takes 64 MiB.
const DEVICE_ROWS: usize = 1 << 16;

/// Why queries and candidates cannot be compared.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// The features have come from different models.
    #[error(
        "queries have {queries} values and candidates {candidates}; extract both with the same model"
    )]
    Dimension {
        /// Values of a query.
        queries: usize,
        /// Values of a candidate.
        candidates: usize,
    },
    /// `--top-k 0`.
    #[error("top-k must be at least 1")]
    ZeroK,
    /// `--eval-batch-size 0`.
    #[error("eval-batch-size must be at least 1")]
    ZeroBlock,
    /// The device failed, most often for want of memory.
    #[error("the device cannot compute scores ({0}); try a smaller eval-batch-size")]
    Device(String),
    /// An annotation names a text or a picture that has no feature.
    #[error("{key} {id} of the annotations has no feature; extract the features of the same split")]
    UnknownId {
        /// `text_id` or `image_id`.
        key: &'static str,
        /// The id.
        id: String,
    },
    /// Features cannot be read.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// No annotation leaves anything to search for.
    #[error("no text of the annotations has a picture: there is nothing to score")]
    NoQueries,
}

/// Approximate scores of one query and consecutive candidates.
pub(crate) struct Row<'a> {
    /// Row of the query.
    pub(crate) query: usize,
    /// Row of the first candidate.
    pub(crate) first: usize,
    /// Scores of this candidate and those that follow.
    pub(crate) scores: &'a [f32],
    /// How far each can be from the exact one.
    pub(crate) bound: f64,
    query_values: &'a [f32],
    candidate_values: &'a [f32],
}

impl Row<'_> {
    /// Score of the candidate at a position of `scores`, in doubles.
    pub(crate) fn exact(&self, offset: usize) -> f64 {
        let dim = self.query_values.len();
        exact(self.query_values, &self.candidate_values[offset * dim..][..dim])
    }
}

/// All pairs of two sets of features.
pub(crate) struct Scan<'a> {
    pub(crate) queries: &'a dyn FeatureSource,
    pub(crate) candidates: &'a dyn FeatureSource,
    /// Candidates held at a time at most.
    pub(crate) block: usize,
    pub(crate) device: &'a Device,
}

/// Queries that are looked through together, with what has been found of each.
struct Chunk<'a, S> {
    first: usize,
    values: &'a [f32],
    lengths: &'a [f64],
    states: Mutex<Vec<S>>,
}

impl Scan<'_> {
    /// Shows `visit` every query with every candidate, in rows of any length and any order, each
    /// pair once; `start` makes the state that it collects in, and `finish` takes those of
    /// consecutive queries, the first of which has the given row, in ascending order.
    ///
    /// At most `at_once` queries have a state at a time.
    ///
    /// # Errors
    /// [`ScoreError`] for features that do not fit together or cannot be read, and those of
    /// `finish`.
    pub(crate) fn run<S: Send, E: From<ScoreError>>(
        &self,
        at_once: usize,
        start: impl Fn(usize) -> S,
        visit: impl Fn(&mut S, &Row<'_>) + Sync,
        mut finish: impl FnMut(usize, Vec<S>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check()?;
        let dim = self.queries.dim();
        let chunk = QUERY_CHUNK.min(at_once.max(1));
        let chunks = (QUERY_VALUES / dim / chunk).min(at_once / chunk).max(1);
        let mut buffer = Vec::new();
        for rows in blocks(self.queries.rows(), chunk * chunks) {
            let values =
                self.queries.read_block(rows.clone(), &mut buffer).map_err(ScoreError::from)?;
            let lengths = lengths(values, dim);
            let parts = values.chunks(chunk * dim).zip(lengths.chunks(chunk)).enumerate();
            let chunks: Vec<Chunk<'_, S>> = parts
                .map(|(index, (values, lengths))| {
                    let first = rows.start + index * chunk;
                    let states = (first..first + lengths.len()).map(&start).collect();
                    Chunk { first, values, lengths, states: Mutex::new(states) }
                })
                .collect();
            match is_host(self.device) {
                true => self.on_host(&chunks, &visit)?,
                false => self.on_device(&chunks, &visit)?,
            }
            let states = chunks.into_iter().flat_map(|chunk| unlocked(chunk.states.into_inner()));
            finish(rows.start, states.collect())?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ScoreError> {
        let (queries, candidates) = (self.queries.dim(), self.candidates.dim());
        if queries != candidates {
            return Err(ScoreError::Dimension { queries, candidates });
        }
        if self.block == 0 {
            return Err(ScoreError::ZeroBlock);
        }
        Ok(())
    }

    /// Every core takes a few candidates and goes through all queries with them.
    fn on_host<S: Send>(
        &self,
        chunks: &[Chunk<'_, S>],
        visit: &(impl Fn(&mut S, &Row<'_>) + Sync),
    ) -> Result<(), ScoreError> {
        let (dim, rows) = (self.candidates.dim(), self.candidates.rows());
        let threads = rayon::current_num_threads();
        // Several turns for each core, so that they end at about the same time.
        let step =
            rows.div_ceil(8 * threads).clamp(64, HOST_ROWS).min((self.block / threads).max(1));
        let work: Vec<Range<usize>> = blocks(rows, step).collect();
        let longest_chunk = chunks.iter().map(|chunk| chunk.lengths.len()).max().unwrap_or(0);
        let buffers = || (Vec::new(), vec![0.0; step * longest_chunk]);
        work.into_par_iter().enumerate().try_for_each_init(
            buffers,
            |(buffer, scores), (turn, rows)| {
                let first = rows.start;
                let values = self.candidates.read_block(rows, buffer)?;
                let longest = longest(values, dim);
                // Not the same order for everyone: they would wait for each other's states.
                let (before, from_here) = chunks.split_at(turn % chunks.len());
                for chunk in from_here.iter().chain(before) {
                    let scores = &mut scores[..chunk.lengths.len() * (values.len() / dim)];
                    let candidates = Matrix::new(values, dim).transposed();
                    multiply(Matrix::new(chunk.values, dim), candidates, scores);
                    let mut states = unlocked(chunk.states.lock());
                    let rows = chunk.rows(scores, first, values, longest, Arithmetic::Single);
                    states.iter_mut().zip(rows).for_each(|(state, row)| visit(state, &row));
                }
                Ok(())
            },
        )
    }

    /// The device multiplies, the cores look through the products.
    fn on_device<S: Send>(
        &self,
        chunks: &[Chunk<'_, S>],
        visit: &(impl Fn(&mut S, &Row<'_>) + Sync),
    ) -> Result<(), ScoreError> {
        let dim = self.candidates.dim();
        let upload = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len() / dim, dim]);
            Tensor::<2>::from_data(data, (self.device, DType::F32))
        };
        let failed = |error: &dyn std::fmt::Display| ScoreError::Device(error.to_string());
        let mut buffer = Vec::new();
        for rows in blocks(self.candidates.rows(), self.block.min(DEVICE_ROWS)) {
            let first = rows.start;
            let values = self.candidates.read_block(rows, &mut buffer)?;
            let longest = values.par_chunks(dim * HOST_ROWS).map(|part| longest(part, dim));
            let longest = longest.reduce(|| 0.0, f64::max);
            let candidates = upload(values).transpose();
            for chunk in chunks {
                let product = upload(chunk.values).matmul(candidates.clone());
                let data = product.try_into_data().map_err(|error| failed(&error))?;
                let scores = data.try_into_vec::<f32>().map_err(|error| failed(&error))?;
                let mut states = unlocked(chunk.states.lock());
                let rows = chunk.rows(&scores, first, values, longest, Arithmetic::Device);
                states.par_iter_mut().zip(rows.collect::<Vec<_>>()).for_each(|(state, row)| {
                    visit(state, &row);
                });
            }
        }
        Ok(())
    }
}

impl<S> Chunk<'_, S> {
    /// `scores`, `[queries of the chunk, candidates]`, query by query.
    fn rows<'a>(
        &'a self,
        scores: &'a [f32],
        first: usize,
        candidate_values: &'a [f32],
        longest: f64,
        arithmetic: Arithmetic,
    ) -> impl Iterator<Item = Row<'a>> {
        let queries = self.lengths.len();
        let dim = self.values.len() / queries;
        let rows = scores.chunks_exact(scores.len() / queries).zip(self.values.chunks_exact(dim));
        rows.zip(self.lengths).enumerate().map(move |(index, ((scores, query_values), length))| {
            let bound = arithmetic.error_bound(dim, length * longest);
            let query = self.first + index;
            Row { query, first, scores, bound, query_values, candidate_values }
        })
    }
}

/// What a lock guards; a panic elsewhere ends the whole scan anyway.
fn unlocked<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

fn blocks(rows: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(block).map(move |start| start..rows.min(start.saturating_add(block)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use cn_clip_data::Id;

    fn features(rows: usize, dim: usize, value: impl Fn(usize) -> f32) -> Features {
        let ids = (0..rows as i64).map(Id::Int).collect();
        Features::new(ids, dim, (0..rows * dim).map(value).collect()).unwrap()
    }

    fn scan<'a>(
        queries: &'a Features,
        candidates: &'a Features,
        block: usize,
        device: &'a Device,
    ) -> Scan<'a> {
        Scan { queries, candidates, block, device }
    }

    fn wave(index: usize) -> f32 {
        (index as f32 * 0.7).sin()
    }

    fn count(scores: &mut [u32], row: &Row<'_>, queries: &Features, candidates: &Features) {
        for (offset, &score) in row.scores.iter().enumerate() {
            let candidate = row.first + offset;
            let expected = exact(queries.row(row.query), candidates.row(candidate));
            assert_eq!(row.exact(offset), expected);
            assert!((f64::from(score) - expected).abs() <= row.bound);
            scores[candidate] += 1;
        }
    }

    #[test]
    fn every_pair_comes_once_and_within_its_bound() {
        let (queries, candidates) = (features(5, 33, wave), features(230, 33, wave));
        let device = Device::default();
        for block in [1, 7, 230, usize::MAX] {
            for at_once in [1, 2, 5, 1000] {
                let mut finished = Vec::new();
                scan(&queries, &candidates, block, &device)
                    .run(
                        at_once,
                        |_| vec![0_u32; 230],
                        |seen, row| count(seen, row, &queries, &candidates),
                        |first, states| {
                            assert!(states.len() <= at_once);
                            assert_eq!(first, finished.len());
                            finished.extend(states);
                            Ok::<(), ScoreError>(())
                        },
                    )
                    .unwrap();
                assert_eq!(finished.len(), 5);
                assert!(finished.iter().flatten().all(|&times| times == 1), "block {block}");
            }
        }
    }

    /// The way of the graphics processors, on tensors of the CPU backend.
    #[test]
    fn devices_see_every_pair_too() {
        let (queries, candidates) = (features(5, 33, wave), features(23, 33, wave));
        let values = (0..2).map(|part| part * 3 * 33..((part + 1) * 3 * 33).min(5 * 33));
        let lengths = lengths(queries.data(), 33);
        let chunks: Vec<_> = values
            .enumerate()
            .map(|(index, range)| Chunk {
                first: index * 3,
                values: &queries.data()[range.clone()],
                lengths: &lengths[range.start / 33..range.end / 33],
                states: Mutex::new(vec![vec![0_u32; 23]; range.len() / 33]),
            })
            .collect();
        let device = Device::default();
        for block in [1, 7, 23, usize::MAX] {
            let visit =
                |seen: &mut Vec<u32>, row: &Row<'_>| count(seen, row, &queries, &candidates);
            scan(&queries, &candidates, block, &device).on_device(&chunks, &visit).unwrap();
        }
        let states = chunks.into_iter().flat_map(|chunk| chunk.states.into_inner().unwrap());
        assert!(states.flatten().all(|times| times == 4));
    }

    #[test]
    fn sizes_are_checked() {
        let (left, right) = (features(2, 3, |_| 1.0), features(2, 4, |_| 1.0));
        let run = |left, right, block| {
            let device = Device::default();
            let none = |_: usize, _: Vec<()>| Ok::<(), ScoreError>(());
            scan(left, right, block, &device).run(9, |_| (), |_, _| (), none).unwrap_err()
        };
        let error = run(&left, &right, 8);
        assert!(matches!(error, ScoreError::Dimension { queries: 3, candidates: 4 }));
        assert!(matches!(run(&left, &left, 0), ScoreError::ZeroBlock));
    }

    /// Features of a file that breaks off.
    struct Broken(Features);

    impl FeatureSource for Broken {
        fn ids(&self) -> &[Id] {
            self.0.ids()
        }

        fn dim(&self) -> usize {
            self.0.dim()
        }

        fn read_block<'a>(
            &'a self,
            rows: Range<usize>,
            buffer: &'a mut Vec<f32>,
        ) -> Result<&'a [f32], FeatureError> {
            match rows.end {
                end if end > 100 => Err(FeatureError::Empty { path: "broken.npy".into() }),
                _ => self.0.read_block(rows, buffer),
            }
        }
    }

    #[test]
    fn features_that_cannot_be_read_end_the_scan() {
        let (good, broken) = (features(2, 3, wave), Broken(features(200, 3, wave)));
        let device = Device::default();
        for (queries, candidates) in
            [(&good as &dyn FeatureSource, &broken as &dyn FeatureSource), (&broken, &good)]
        {
            let scan = Scan { queries, candidates, block: 32, device: &device };
            let none = |_: usize, _: Vec<()>| Ok::<(), ScoreError>(());
            let error = scan.run(1000, |_| (), |_, _| (), none).unwrap_err();
            assert!(error.to_string().starts_with("broken.npy"), "{error}");
        }
    }
}
