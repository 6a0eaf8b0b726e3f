//! Blocks of a ResNet by kernels of our own compute what Burn computes an operation at a time.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Only the configuration is used here.
mod small;

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData, activation::relu},
};
use cn_clip_model::{
    Clip, ClipConfig, ImageTower, Pass, SampleRng, VisionConfig,
    config::VisionLayers,
    vision::resnet::{Bottleneck, ModifiedResNet},
};

fn tower() -> ModifiedResNet {
    let config = small::config(8, 2, 1);
    let (layers, patch_size) = (VisionLayers::ResNet([2, 1, 1, 1]), None);
    let vision = VisionConfig { layers, patch_size, image_resolution: 64, ..config.vision };
    let clip = Clip::init(&ClipConfig { vision, ..config }, &Device::flex().autodiff(), 1);
    let ImageTower::ResNet(tower) = clip.visual else { panic!("not a ResNet") };
    tower
}

/// Noise that is the same in every run: a ReLU whose input is zero to rounding may go either way,
/// and then gradients differ.
fn noise(shape: [usize; 4], device: &Device) -> Tensor<4> {
    let mut state = 1_u64;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 22) as f32 - 1.9
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn stem_by_operations(tower: &ModifiedResNet, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
    let norms = tower.stem_norms().into_iter().enumerate();
    let x = norms.fold(x, |x, (index, norm)| norm.forward(tower.convolve_stem(index, x), pass));
    ModifiedResNet::end_of_stem(x)
}

fn block_by_operations(block: &Bottleneck, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
    let norms = block.branch().into_iter().enumerate();
    let y = norms.fold(x.clone(), |x, (index, norm)| norm.forward(block.convolve(index, x), pass));
    let shortcut = match &block.downsample {
        Some(shortcut) => shortcut.norm.forward(block.convolve_shortcut(shortcut, x), pass),
        None => x,
    };
    relu(y + shortcut)
}

fn error<const D: usize>(ours: Tensor<D>, expected: Tensor<D>) -> f32 {
    assert_eq!(ours.dims(), expected.dims());
    let largest: f32 = expected.clone().abs().max().into_scalar();
    assert!(largest > 0.0);
    (ours - expected).abs().max().into_scalar::<f32>() / largest
}

/// Outputs, and gradients of the input, of both.
fn check(
    shape: [usize; 4],
    pass: Pass<'_>,
    ours: impl Fn(Tensor<4>) -> Tensor<4>,
    operations: impl Fn(Tensor<4>) -> Tensor<4>,
) {
    let device = Device::flex().autodiff();
    let x = noise(shape, &device);
    let run = |forward: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let x = x.clone().require_grad();
        let y = forward(x.clone());
        // A gradient that differs from place to place.
        let weight = (y.clone().detach() * 3.0).sin();
        let gradient = x.grad(&(y.clone() * weight).sum().backward()).unwrap();
        (y.inner(), gradient)
    };
    let (found, expected) = (run(&ours), run(&operations));
    let (value, gradient) = (error(found.0, expected.0), error(found.1, expected.1));
    assert!(value < 1e-5 && gradient < 1e-3, "{shape:?} {pass:?}: {value:e} {gradient:e}");
}

#[test]
fn values_and_gradients_of_the_input_are_those_of_the_operations() {
    let tower = tower();
    let rng = SampleRng::for_step(1, 1, 0..3);
    let training = Pass::Train { rng: &rng, update_statistics: false };
    for pass in [training, Pass::Eval] {
        // Odd sizes too, of which pooling leaves out a line.
        for [height, width] in [[64, 64], [31, 37]] {
            check(
                [3, 3, height, width],
                pass,
                |x| tower.stem(x, pass),
                |x| stem_by_operations(&tower, x, pass),
            );
        }
        let mut channels = 16;
        for blocks in tower.stages() {
            for block in blocks {
                check(
                    [3, channels, 9, 8],
                    pass,
                    |x| ModifiedResNet::stage(std::slice::from_ref(block), x, pass),
                    |x| block_by_operations(block, x, pass),
                );
                channels = block.conv3.weight.dims()[0];
            }
        }
    }
}

#[test]
fn evaluation_without_a_graph_is_the_same() {
    let tower = tower();
    let plain = tower.valid();
    let x = noise([2, 3, 64, 64], &Device::flex());
    let ours = plain.stem(x.clone(), Pass::Eval);
    assert!(error(ours.clone(), stem_by_operations(&plain, x, Pass::Eval)) < 1e-5);
    let block = &plain.layer2[0];
    let x = ModifiedResNet::stage(&plain.layer1, ours, Pass::Eval);
    let ours = ModifiedResNet::stage(&plain.layer2, x.clone(), Pass::Eval);
    assert!(error(ours, block_by_operations(block, x, Pass::Eval)) < 1e-5);
}
