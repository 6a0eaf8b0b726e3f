//! Recall over a whole validation set, by the definition of the field: the share of queries with
//! one of their own among the first k.

use std::{collections::HashMap, hash::Hash};

use burn::tensor::Tensor;
use rayon::prelude::*;

/// Queries compared with all candidates at a time.
const TILE: usize = 1024;

/// Shares for k = 1, 5 and 10.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Of texts that find a picture of theirs.
    pub text_to_image: [f32; 3],
    /// Of pictures that find a text of theirs.
    pub image_to_text: [f32; 3],
}

/// Recall of pairs, given the identities of their pictures and texts, with normalised features in
/// the same rows (`[pairs, embed_dim]` each). A picture or text that is in several pairs counts
/// once.
pub fn recall<K: Hash + Eq>(pairs: &[(K, K)], image: &Tensor<2>, text: &Tensor<2>) -> Recall {
    let (images, image_of) = distinct(pairs.iter().map(|(image, _)| image));
    let (texts, text_of) = distinct(pairs.iter().map(|(_, text)| text));
    let mut images_of_text = vec![Vec::new(); texts.len()];
    let mut texts_of_image = vec![Vec::new(); images.len()];
    for (image, text) in image_of.into_iter().zip(text_of) {
        images_of_text[text].push(image);
        texts_of_image[image].push(text);
    }
    let rows = |features: &Tensor<2>, rows: &[i64]| {
        let rows = Tensor::<1, burn::tensor::Int>::from_ints(rows, &features.device());
        features.clone().select(0, rows)
    };
    let (image, text) = (rows(image, &images), rows(text, &texts));
    Recall {
        text_to_image: shares(&text, &image, &images_of_text),
        image_to_text: shares(&image, &text, &texts_of_image),
    }
}

/// The first row of every id, and the number of the id of every row.
fn distinct<'a, K: Hash + Eq + 'a>(ids: impl Iterator<Item = &'a K>) -> (Vec<i64>, Vec<usize>) {
    let (mut seen, mut first) = (HashMap::new(), Vec::new());
    let numbers = ids
        .enumerate()
        .map(|(row, id)| {
            *seen.entry(id).or_insert_with(|| {
                first.push(row as i64);
                first.len() - 1
            })
        })
        .collect();
    (first, numbers)
}

fn shares(queries: &Tensor<2>, candidates: &Tensor<2>, truth: &[Vec<usize>]) -> [f32; 3] {
    let (count, width) = (queries.dims()[0], candidates.dims()[0]);
    let mut found = [0usize; 3];
    for start in (0..count).step_by(TILE) {
        let end = (start + TILE).min(count);
        let tile = queries.clone().slice_dim(0, start..end);
        let scores = tile.matmul(candidates.clone().transpose()).into_data();
        let scores: Vec<f32> = scores.iter::<f32>().collect();
        let ranks: Vec<usize> = scores
            .par_chunks(width)
            .zip(&truth[start..end])
            .map(|(row, truth)| truth.iter().map(|own| rank(row, *own)).min().unwrap_or(width))
            .collect();
        for (found, k) in found.iter_mut().zip([1, 5, 10]) {
            *found += ranks.iter().filter(|rank| **rank < k).count();
        }
    }
    found.map(|found| found as f32 / count.max(1) as f32)
}

/// Candidates before `own`; of equal ones those that come first.
fn rank(scores: &[f32], own: usize) -> usize {
    let score = scores[own];
    let better = scores.iter().filter(|other| **other > score).count();
    better + scores[..own].iter().filter(|other| **other == score).count()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn a_picture_with_several_texts_is_found_by_any_and_counts_once() {
        // Pictures 1 and 2; texts 10 and 11 of picture 1, 12 of picture 2.
        let pairs = [(1, 10), (1, 11), (2, 12)];
        let tensor = |rows: [[f32; 2]; 3]| {
            Tensor::<2>::from_data(TensorData::from(rows), &Device::default())
        };
        let image = tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
        // Text 11 looks like picture 2, more than text 12 does; text 12 like picture 1.
        let text = tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]]);
        let found = recall(&pairs, &image, &text);
        assert_eq!(found.text_to_image, [1.0 / 3.0, 1.0, 1.0]);
        assert_eq!(found.image_to_text, [0.5, 1.0, 1.0]);
    }

    #[test]
    fn ties_keep_the_order() {
        assert_eq!(rank(&[0.5, 0.7, 0.5, 0.5], 2), 2);
        assert_eq!(rank(&[0.5, 0.7, 0.5, 0.5], 1), 0);
    }
}
