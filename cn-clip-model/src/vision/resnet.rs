//! The ModifiedResNet of CLIP: three-convolution stem, anti-aliased strides, attention pool
//! (`cn_clip/clip/model.py`).

use burn::{
    module::Module,
    nn::{
        PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Tensor, activation::relu, module::avg_pool2d, ops::AvgPoolOptions},
};

use super::{attention_pool::AttentionPool2d, batch_norm::BatchNorm2d};
use crate::{
    clip::Pass,
    host,
    init::{Init, Values},
    precision::as_type_of,
};

/// Output channels of a bottleneck per plane.
const EXPANSION: usize = 4;
/// Stride of the pooling at the end of the stem.
pub(crate) const STEM_POOLING: usize = 2;

fn conv(input: usize, output: usize, kernel: usize, stride: usize, init: &Init) -> Conv2d {
    let padding = kernel / 2;
    let bound = 1.0 / ((input * kernel * kernel) as f64).sqrt();
    let shape = [output, input, kernel, kernel];
    Conv2d {
        weight: init.param("weight", shape, Values::Uniform(bound)),
        ..Conv2dConfig::new([input, output], [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .with_bias(false)
            .init(init.device())
    }
}

fn average_pool(x: Tensor<4>, stride: usize) -> Tensor<4> {
    if stride == 1 {
        return x;
    }
    let options = AvgPoolOptions {
        kernel_size: [stride, stride],
        stride: [stride, stride],
        padding: [(0, 0), (0, 0)],
        count_include_pad: true,
        ceil_mode: false,
    };
    avg_pool2d(x, options)
}

/// Shortcut of a bottleneck that changes shape.
#[derive(Module, Debug)]
pub struct Downsample {
    /// 1x1 convolution.
    pub conv: Conv2d,
    /// Norm after it.
    pub norm: BatchNorm2d,
}

/// Bottleneck block.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1x1.
    pub conv1: Conv2d,
    /// Norm after `conv1`.
    pub bn1: BatchNorm2d,
    /// 3x3, always stride 1.
    pub conv2: Conv2d,
    /// Norm after `conv2`.
    pub bn2: BatchNorm2d,
    /// 1x1.
    pub conv3: Conv2d,
    /// Norm after `conv3`.
    pub bn3: BatchNorm2d,
    /// Shortcut, where the shape changes.
    pub downsample: Option<Downsample>,
    stride: usize,
}

impl Bottleneck {
    fn init(input: usize, planes: usize, stride: usize, init: &Init) -> Self {
        let output = planes * EXPANSION;
        let norm = |name: &str, channels, scale| BatchNorm2d::init(channels, scale, &init.at(name));
        let downsample = (stride > 1 || input != output).then(|| {
            let init = init.at("downsample");
            Downsample {
                conv: conv(input, output, 1, 1, &init.at(0)),
                norm: BatchNorm2d::init(output, 1.0, &init.at(1)),
            }
        });
        Self {
            conv1: conv(input, planes, 1, 1, &init.at("conv1")),
            bn1: norm("bn1", planes, 1.0),
            conv2: conv(planes, planes, 3, 1, &init.at("conv2")),
            bn2: norm("bn2", planes, 1.0),
            conv3: conv(planes, output, 1, 1, &init.at("conv3")),
            bn3: norm("bn3", output, 0.0),
            downsample,
            stride,
        }
    }

    fn norms(&self) -> impl Iterator<Item = &BatchNorm2d> {
        let shortcut = self.downsample.as_ref().map(|downsample| &downsample.norm);
        self.branch().into_iter().chain(shortcut)
    }

    /// What is between a norm of the residual branch and the one before it, or the input.
    pub fn convolve(&self, norm: usize, x: Tensor<4>) -> Tensor<4> {
        match norm {
            0 => self.conv1.forward(x),
            1 => self.conv2.forward(relu(x)),
            _ => self.conv3.forward(average_pool(relu(x), self.stride)),
        }
    }

    /// Norms of the residual branch.
    pub fn branch(&self) -> [&BatchNorm2d; 3] {
        [&self.bn1, &self.bn2, &self.bn3]
    }

    /// What is between the input and the norm of a shortcut that changes shape.
    pub fn convolve_shortcut(&self, shortcut: &Downsample, x: Tensor<4>) -> Tensor<4> {
        shortcut.conv.forward(average_pool(x, self.stride))
    }

    fn forward(&self, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        host::bottleneck(self, self.stride, &x, pass)
            .unwrap_or_else(|| self.forward_by_operations(x, pass))
    }

    fn forward_by_operations(&self, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        let norms = self.branch().into_iter().enumerate();
        let y =
            norms.fold(x.clone(), |x, (index, norm)| norm.forward(self.convolve(index, x), pass));
        let shortcut = match &self.downsample {
            Some(shortcut) => shortcut.norm.forward(self.convolve_shortcut(shortcut, x), pass),
            None => x,
        };
        relu(y + shortcut)
    }
}

/// ModifiedResNet: pixels to image features.
#[derive(Module, Debug)]
pub struct ModifiedResNet {
    /// Stem, stride 2.
    pub conv1: Conv2d,
    /// Norm after `conv1`.
    pub bn1: BatchNorm2d,
    /// Stem.
    pub conv2: Conv2d,
    /// Norm after `conv2`.
    pub bn2: BatchNorm2d,
    /// Stem.
    pub conv3: Conv2d,
    /// Norm after `conv3`.
    pub bn3: BatchNorm2d,
    /// First stage.
    pub layer1: Vec<Bottleneck>,
    /// Second stage.
    pub layer2: Vec<Bottleneck>,
    /// Third stage.
    pub layer3: Vec<Bottleneck>,
    /// Fourth stage.
    pub layer4: Vec<Bottleneck>,
    /// Pooling and projection.
    pub attnpool: AttentionPool2d,
}

impl ModifiedResNet {
    pub(crate) fn init(config: &crate::VisionConfig, stages: [usize; 4], init: &Init) -> Self {
        let width = config.width;
        let mut input = width;
        let mut stage = |index: usize| -> Vec<Bottleneck> {
            let (planes, init) = (width << index, init.at(format!("layer{}", index + 1)));
            let block = |block: usize| {
                let stride = if block == 0 && index > 0 { 2 } else { 1 };
                let made = Bottleneck::init(input, planes, stride, &init.at(block));
                input = planes * EXPANSION;
                made
            };
            (0..stages[index]).map(block).collect()
        };
        let (layer1, layer2, layer3, layer4) = (stage(0), stage(1), stage(2), stage(3));
        let norm = |name: &str, channels| BatchNorm2d::init(channels, 1.0, &init.at(name));
        Self {
            conv1: conv(3, width / 2, 3, 2, &init.at("conv1")),
            bn1: norm("bn1", width / 2),
            conv2: conv(width / 2, width / 2, 3, 1, &init.at("conv2")),
            bn2: norm("bn2", width / 2),
            conv3: conv(width / 2, width, 3, 1, &init.at("conv3")),
            bn3: norm("bn3", width),
            layer1,
            layer2,
            layer3,
            layer4,
            attnpool: AttentionPool2d::init(
                config.grid(),
                width * 32,
                config.heads(),
                config.embed_dim,
                &init.at("attnpool"),
            ),
        }
    }

    /// Pixels `[batch, 3, R, R]` to `[batch, width, R / 4, R / 4]`.
    pub fn stem(&self, pixels: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        host::stem(self, &pixels, pass).unwrap_or_else(|| self.stem_by_operations(pixels, pass))
    }

    fn stem_by_operations(&self, pixels: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        let norms = self.stem_norms().into_iter().enumerate();
        let x =
            norms.fold(pixels, |x, (index, norm)| norm.forward(self.convolve_stem(index, x), pass));
        Self::end_of_stem(x)
    }

    /// What is between a norm of the stem and the one before it, or the pixels.
    pub fn convolve_stem(&self, norm: usize, x: Tensor<4>) -> Tensor<4> {
        match norm {
            0 => self.conv1.forward(as_type_of(x, &self.conv1.weight.val())),
            1 => self.conv2.forward(relu(x)),
            _ => self.conv3.forward(relu(x)),
        }
    }

    /// Norms of the stem.
    pub fn stem_norms(&self) -> [&BatchNorm2d; 3] {
        [&self.bn1, &self.bn2, &self.bn3]
    }

    /// What follows the last norm of the stem.
    pub fn end_of_stem(x: Tensor<4>) -> Tensor<4> {
        average_pool(relu(x), STEM_POOLING)
    }

    /// Takes over the running averages of a copy of this tower.
    pub(crate) fn adopt_statistics(&self, copy: &Self) {
        self.norms().zip(copy.norms()).for_each(|(own, copy)| own.adopt_statistics(copy));
    }

    pub(crate) fn running_statistics(&self) -> Vec<f32> {
        let tensors = self.norms().flat_map(BatchNorm2d::averages);
        tensors
            .flat_map(|state| state.value_sync().into_data().iter::<f32>().collect::<Vec<_>>())
            .collect()
    }

    pub(crate) fn set_running_statistics(&self, mut values: &[f32]) {
        for state in self.norms().flat_map(BatchNorm2d::averages) {
            let old = state.value_sync();
            let Some((own, rest)) = values.split_at_checked(old.dims()[0]) else { return };
            values = rest;
            BatchNorm2d::set(state, Tensor::from_data(own, &old.device()));
        }
    }

    fn norms(&self) -> impl Iterator<Item = &BatchNorm2d> {
        let blocks = self.stages().into_iter().flatten().flat_map(Bottleneck::norms);
        self.stem_norms().into_iter().chain(blocks)
    }

    /// The four stages in order.
    pub fn stages(&self) -> [&[Bottleneck]; 4] {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
    }

    /// One stage.
    pub fn stage(blocks: &[Bottleneck], x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        blocks.iter().fold(x, |x, block| block.forward(x, pass))
    }

    /// `[batch, 3, R, R]` to un-normalised image features `[batch, embed_dim]`.
    pub fn forward(&self, pixels: Tensor<4>, pass: Pass<'_>) -> Tensor<2> {
        let x = self.stem(pixels, pass);
        let x = self.stages().into_iter().fold(x, |x, blocks| Self::stage(blocks, x, pass));
        self.attnpool.forward(x)
    }
}
