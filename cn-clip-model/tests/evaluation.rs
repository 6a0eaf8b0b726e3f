//! Evaluation by the kernels for the processor against the same towers computed by Burn.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used)]

mod small;

use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};
use cn_clip_model::{Clip, ImageTower, Pass};
use small::{config, double, pixels, tokens};

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// By Burn, in double precision, for which there are no kernels.
fn by_burn(model: &Clip, pixels: Tensor<4>, tokens: Tensor<2, Int>) -> [Vec<f32>; 2] {
    by_kernels(&double(model), pixels, tokens)
}

fn by_kernels(model: &Clip, pixels: Tensor<4>, tokens: Tensor<2, Int>) -> [Vec<f32>; 2] {
    let image = model.encode_image(pixels, None, Pass::Eval);
    [values(image), values(model.encode_text(tokens, Pass::Eval))]
}

fn assert_close(a: &[Vec<f32>; 2], b: &[Vec<f32>; 2], tolerance: f32) {
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        let norm = a.iter().map(|x| x * x).sum::<f32>().sqrt();
        let error = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(norm > 0.1 && error < tolerance * norm, "{error} of {norm}");
    }
}

#[test]
fn kernels_compute_what_burn_does() {
    let device = Device::flex();
    for (head_width, heads, layers) in [(64, 1, 1), (20, 3, 2), (5, 2, 3), (32, 4, 2)] {
        let model = Clip::init(&config(head_width, heads, layers), &device, 3);
        for lengths in [&[3][..], &[1, 9, 4], &[16; 8], &[2, 3, 5, 7, 11, 13, 1, 1, 2, 3, 5, 8, 13]]
        {
            let (pixels, tokens) = (pixels(lengths.len(), &device), tokens(lengths, &device));
            let expected = by_burn(&model, pixels.clone(), tokens.clone());
            assert_close(&expected, &by_kernels(&model, pixels, tokens), 2e-6);
        }
    }
}

#[test]
fn an_empty_batch_has_no_features() {
    let device = Device::flex();
    let model = Clip::init(&config(16, 2, 2), &device, 3);
    let found = by_kernels(&model, pixels(0, &device), tokens(&[], &device));
    assert!(found.iter().all(Vec::is_empty));
}

/// Padding that is no padding, and a text of padding alone, go by Burn. Of the latter all scores
/// are some -10,000, in single precision off by a thousandth.
#[test]
fn zeros_inside_a_text_are_masked() {
    let device = Device::flex();
    let model = Clip::init(&config(16, 2, 2), &device, 3);
    let inside = ([[1, 0, 3, 0], [2, 4, 1, 1]], 2e-6);
    for (ids, tolerance) in [inside, ([[0, 0, 0, 0], [2, 4, 1, 0]], 1e-4)] {
        let tokens = Tensor::<2, Int>::from_data(ids, &device);
        let expected = by_burn(&model, pixels(2, &device), tokens.clone());
        assert_close(&expected, &by_kernels(&model, pixels(2, &device), tokens), tolerance);
    }
}

/// The prepared weights are those of the model at the time, also in copies of it.
#[test]
fn changed_weights_are_prepared_anew() {
    let device = Device::flex();
    let input = || (pixels(2, &device), tokens(&[4, 6], &device));
    let mut model = Clip::init(&config(16, 2, 2), &device, 3);
    let evaluate = |model: &Clip| by_kernels(model, input().0, input().1);
    let before = evaluate(&model);
    let copy = model.clone();
    let ImageTower::Vit(tower) = &mut model.visual else { panic!("a ViT") };
    let block = &mut tower.transformer.resblocks[0];
    block.mlp.c_fc.weight = block.mlp.c_fc.weight.clone().map(|weight| weight * 1.5);
    let bias = &mut model.bert.encoder.layer[1].output.dense.bias;
    *bias = bias.take().map(|bias: Param<Tensor<1>>| bias.map(|bias| bias + 0.1));
    let after = evaluate(&model);
    assert_close(&by_burn(&model, input().0, input().1), &after, 2e-6);
    assert!(before[0] != after[0] && before[1] != after[1]);
    assert_eq!(evaluate(&copy), before);
    model.release_prepared();
    assert_eq!(evaluate(&model), after);
    assert_eq!(evaluate(&model.valid()), after);
}
