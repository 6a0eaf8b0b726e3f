//! Extraction and search beside the files that the Python program has written.

#![allow(clippy::unwrap_used)] // A panic is a check that fails.

use std::collections::HashMap;

use burn::tensor::Device;
use cn_clip_data::{
    Id,
    format::{Lines, query_line},
    image::ImageTransform,
    lmdb::LmdbImages,
};
use cn_clip_eval::{
    extract::{image_features, text_features},
    features::{Features, Modality},
    knn,
};
use cn_clip_model::{
    Clip, ClipConfig, Precision,
    checkpoint::{self, Checkpoint},
};

use super::{
    golden::{Errors, fixture},
    towers::json,
};

const CONTEXT_LENGTH: usize = 24;

/// Features of the pictures and texts of a data set.
pub fn extraction(device: &Device, precision: Precision) -> Errors {
    let config = json("train_run/meta.json")["model_config"].take();
    let config: ClipConfig = serde_json::from_value(config).unwrap();
    let weights = Checkpoint::open(fixture("train_run/init_fp16.pt")).unwrap();
    let model = checkpoint::load(Clip::init(&config, device, 0), &weights).unwrap();
    let model = precision.copy(&model);
    let mut errors = Errors::default();

    let pictures = LmdbImages::open(fixture("dataset/lmdb/valid/imgs")).unwrap();
    let transform = ImageTransform::new(config.vision.image_resolution);
    let ids = pictures.ids().unwrap();
    let mut found = HashMap::new();
    let picture = |id: &Id| pictures.image(id);
    image_features(&model, &ids, picture, &transform, 2, |ids, features| {
        let rows = features.chunks(features.len() / ids.len()).map(<[f32]>::to_vec);
        found.extend(ids.iter().cloned().zip(rows));
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap();
    compare(&mut errors, "extract/valid_imgs.img_feat.jsonl", Modality::Image, &found);

    let mut lines = Lines::open(&fixture("dataset/valid_texts.jsonl")).unwrap();
    let (mut ids, mut texts, mut line) = (Vec::new(), Vec::new(), String::new());
    while lines.next_into(&mut line).unwrap() {
        let (id, text) = query_line(&line).unwrap();
        ids.push(id);
        texts.push(text);
    }
    let mut found = HashMap::new();
    text_features(&model, &texts, CONTEXT_LENGTH, 4, |first, features| {
        let rows = features.chunks(config.vision.embed_dim).map(<[f32]>::to_vec);
        found.extend(ids[first..].iter().cloned().zip(rows));
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap();
    compare(&mut errors, "extract/valid_texts.txt_feat.jsonl", Modality::Text, &found);
    errors
}

fn compare(errors: &mut Errors, file: &str, modality: Modality, found: &HashMap<Id, Vec<f32>>) {
    let recorded = Features::read(&fixture(file), modality).unwrap();
    assert_eq!(recorded.rows(), found.len());
    for (index, id) in recorded.ids().iter().enumerate() {
        errors.add(&format!("{modality} {id}"), &found[id], recorded.row(index));
    }
}

/// Share of places that differ from the recorded rankings, in both directions. (Not those of
/// `valid_predictions.k5_bs7`, where the Python program swaps duplicates.)
pub fn top_k(device: &Device) -> Errors {
    let read = |name: &str, modality| Features::read(&fixture(name), modality).unwrap();
    let images = read("eval/valid_imgs.img_feat.jsonl", Modality::Image);
    let texts = read("eval/valid_texts.txt_feat.jsonl", Modality::Text);
    let mut errors = Errors::default();
    for (file, queries, candidates, key, k, block) in [
        ("valid_predictions.jsonl", &texts, &images, "image_ids", 10, 32_768),
        ("valid_tr_predictions.jsonl", &images, &texts, "text_ids", 10, 32_768),
        ("valid_tr_predictions.k5_bs7.jsonl", &images, &texts, "text_ids", 5, 7),
    ] {
        let ranked = knn::top_k(queries, candidates, k, block, device).unwrap();
        let text = std::fs::read_to_string(fixture(&format!("eval/{file}"))).unwrap();
        assert_eq!(text.lines().count(), ranked.len());
        let (mut different, mut count) = (0, 0);
        for (line, found) in text.lines().zip(&ranked) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let expected = line[key].as_array().unwrap();
            assert_eq!(expected.len(), found.len());
            let same = |(id, hit): (&serde_json::Value, &knn::Neighbour)| {
                id.as_i64().map(Id::Int).as_ref() == Some(&candidates.ids()[hit.index])
            };
            different += expected.iter().zip(found).filter(|pair| !same(*pair)).count();
            count += found.len();
        }
        errors.found.push((file.to_string(), different as f32 / count as f32));
    }
    errors
}
