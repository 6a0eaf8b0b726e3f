//! Batches of a stream.

#![allow(clippy::unwrap_used)]

#[path = "support/forms.rs"]
mod forms;

use std::sync::Arc;

use cn_clip_data::{
    DataError, Pair,
    forms::{Part, Sample, Source, TargetForm},
    image::{ImageError, PixelTransform},
    loader::{Batch, Loader, LoaderOptions},
};
use forms::{memory, stream, written};
use tempfile::TempDir;

/// Takes pictures apart by their first byte: writes seed and byte, and refuses 255.
struct Probe;

impl PixelTransform for Probe {
    fn resolution(&self) -> usize {
        1
    }

    fn apply(&self, bytes: &[u8], seed: u64, out: &mut [f32]) -> Result<(), ImageError> {
        if bytes == [255] {
            return Err(ImageError::Base64 { reason: "bad".to_string() });
        }
        out.copy_from_slice(&[bytes[0].into(), (seed % 65_536) as f32, 0.0]);
        Ok(())
    }
}

fn samples(pictures: &[u8]) -> Vec<Result<Sample, DataError>> {
    let sample = |(number, byte): (usize, &u8)| {
        let number = number as i64;
        let pair =
            Pair { image_id: number.into(), text_id: number.into(), text: "猫".to_string() };
        Ok(Sample { pair, image: vec![*byte] })
    };
    pictures.iter().enumerate().map(sample).collect()
}

fn batches(
    samples: Vec<Result<Sample, DataError>>,
    options: &LoaderOptions,
) -> Vec<Result<Batch, DataError>> {
    Loader::stream(Box::new(samples.into_iter()), Arc::new(Probe), options.clone())
        .unwrap()
        .collect()
}

#[test]
fn a_stream_of_batches_leaves_bad_pictures_out() {
    let options = LoaderOptions {
        batch_size: 3,
        context_length: 4,
        workers: 2,
        seed: 9,
        skip_bad_images: true,
        ..LoaderOptions::default()
    };
    let pictures = [1, 255, 3, 4, 255, 255, 7, 8, 9, 255];
    let run = |pictures: &[u8], options: &LoaderOptions| -> Vec<Batch> {
        batches(samples(pictures), options).into_iter().map(Result::unwrap).collect()
    };
    let done = run(&pictures, &options);
    assert_eq!(done.iter().map(|batch| batch.size).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(done.iter().map(|batch| batch.consumed).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(done[0].tokens.len(), 12);
    let bytes = |batch: &Batch| batch.pixels.chunks(3).map(|pixel| pixel[0]).collect::<Vec<_>>();
    // The fourth sample takes the place of the second.
    assert_eq!(bytes(&done[0]), [1.0, 4.0, 3.0]);
    let ids: Vec<String> = done[0].pairs.iter().map(|pair| pair.image_id.to_string()).collect();
    assert_eq!(ids, ["0", "3", "2"]);
    let ragged = run(&[1, 2, 3, 255, 5], &options);
    assert_eq!((ragged[1].size, bytes(&ragged[1])), (1, vec![5.0]));
    assert_eq!((ragged[1].pixels.len(), ragged[1].tokens.len()), (3, 4));

    // What follows a batch is the same when it is begun there.
    let first = done[0].size;
    let rest = run(&pictures[done[0].consumed..], &LoaderOptions { first, ..options.clone() });
    assert_eq!(rest[0].pixels, done[1].pixels);

    // With a stride the seeds are those of every second position.
    let seeds = |batch: &Batch| batch.pixels.chunks(3).map(|pixel| pixel[1]).collect::<Vec<_>>();
    let plain = run(&[1; 6], &LoaderOptions { batch_size: 6, ..options.clone() });
    let strided = LoaderOptions { first: 1, stride: 2, ..options.clone() };
    let all = seeds(&plain[0]);
    assert_eq!(seeds(&run(&[1; 3], &strided)[0]), [all[1], all[3], all[5]]);

    let strict = LoaderOptions { skip_bad_images: false, ..options.clone() };
    let failed = batches(samples(&pictures), &strict);
    assert!(matches!(failed[..], [Err(DataError::Image { .. })]));
    let mut broken = samples(&[1, 2, 3, 4]);
    broken.push(Err(DataError::Config("shard".to_string())));
    let failed = batches(broken, &options);
    assert!(matches!(failed[..], [Ok(_), Err(DataError::Config(_))]));
}

#[test]
fn a_tar_stream_makes_batches() {
    let folder = TempDir::new().unwrap();
    let spec = written(folder.path(), &Source::Pairs(memory(30)), TargetForm::Tar, 8);
    let samples = stream(&spec).samples(&Part { take: 30, ..Part::default() });
    let options = LoaderOptions { batch_size: 8, ..LoaderOptions::default() };
    let transform = Arc::new(cn_clip_data::image::ImageTransform::new(4));
    let loader = Loader::stream(samples, transform, options).unwrap();
    assert_eq!(loader.size_hint(), (0, Some(4)));
    let sizes: Vec<usize> = loader.map(|batch| batch.unwrap().size).collect();
    assert_eq!(sizes, [8, 8, 8, 6]);
}
