//! Small data sets, written in any form.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{path::Path, sync::Arc};

use cn_clip_data::{
    Id, Pair,
    forms::{Sample, SampleStream, ShardOptions, Source, TargetForm, open, write_shards},
    source::{MemoryDataset, PairSource},
};

/// A picture of one colour.
pub fn png(number: usize) -> Vec<u8> {
    let colour = image::Rgb([(number % 256) as u8, (number / 256) as u8, 7]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(2, 2, colour)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// Pairs of which three share each picture, and some follow each other with one text.
pub fn memory(pairs: usize) -> Arc<dyn PairSource> {
    let pair = |number: usize| Pair {
        image_id: match number / 3 {
            0 => Id::Text("erste Bild".to_string()),
            picture => Id::Int(picture as i64 - 2),
        },
        text_id: Id::Int(number as i64 / 2),
        text: match number / 2 {
            1 => "  两只猫，\"引号\"\n第二行 ".to_string(),
            text => format!("文本 {text}"),
        },
    };
    let pairs: Vec<Pair> = (0..pairs).map(pair).collect();
    let images =
        pairs.iter().enumerate().map(|(number, pair)| (pair.image_id.clone(), png(number / 3)));
    Arc::new(MemoryDataset { images: images.collect(), pairs: pairs.clone() })
}

pub fn all(source: &Source) -> Vec<Sample> {
    match source {
        Source::Pairs(pairs) => (0..pairs.len())
            .map(|index| {
                let pair = pairs.pair(index).unwrap();
                let image = pairs.image(index, &pair).unwrap();
                Sample { pair, image }
            })
            .collect(),
        Source::Stream(stream) => stream.pairs().map(Result::unwrap).collect(),
    }
}

pub fn stream(spec: &str) -> Arc<dyn SampleStream> {
    match open(spec).unwrap() {
        Source::Stream(stream) => stream,
        Source::Pairs(_) => panic!("{spec} is no stream"),
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn error(spec: impl AsRef<Path>) -> String {
    open(text(spec.as_ref())).err().unwrap().to_string()
}

pub fn options(samples: usize) -> ShardOptions {
    ShardOptions { prefix: "train".to_string(), samples, ..ShardOptions::default() }
}

/// Writes a data set and returns what names it.
pub fn written(folder: &Path, source: &Source, target: TargetForm, samples: usize) -> String {
    let mut calls = 0;
    let mut progress = |done| {
        calls += 1;
        assert_eq!(done, calls);
    };
    let options = options(samples);
    let summary = write_shards(source, target, folder, &options, &mut progress).unwrap();
    assert_eq!(summary.samples, calls);
    assert!(summary.paths.iter().all(|path| path.exists()));
    let name = match target {
        TargetForm::Tar => "train-*.tar",
        TargetForm::Parquet => "train-*.parquet",
        TargetForm::TextFiles | TargetForm::Lmdb => "train",
    };
    text(&folder.join(name)).to_string()
}
