//! Blocks of a ResNet as operations of Burn, with gradients by [`super::bottleneck`].

use burn::{
    backend::flex::FlexTensor,
    module::RunningState,
    nn::conv::Conv2d,
    tensor::{Device, Shape, Tensor, TensorData},
};

use super::{
    bottleneck::{self, Convolved, Step},
    channel_norm::{ChannelNorm, Moments},
    maps::{Conv, Size},
    operation::{Inputs, Operation, tensor},
    source::Source,
};
use crate::{
    clip::Pass,
    vision::{
        batch_norm::{BatchNorm2d, EPSILON},
        resnet,
    },
};

/// Inputs of a stem, or of a bottleneck with a plain shortcut, and of one with a convolved shortcut.
const PLAIN_INPUTS: usize = 1 + 3 * 3;
const CONVOLVED_INPUTS: usize = 1 + 4 * 3;

/// A bottleneck on `[batch, channels, height, width]`. `None` where only Burn can.
pub(crate) fn bottleneck(
    block: &resnet::Bottleneck,
    stride: usize,
    x: &Tensor<4>,
    pass: Pass<'_>,
) -> Option<Tensor<4>> {
    let branch =
        [(&block.conv1, &block.bn1), (&block.conv2, &block.bn2), (&block.conv3, &block.bn3)];
    match &block.downsample {
        None => apply::<PLAIN_INPUTS>(Kind::Bottleneck, stride, &branch, x, pass),
        Some(shortcut) => {
            let [first, second, third] = branch;
            let steps = [first, second, third, (&shortcut.conv, &shortcut.norm)];
            apply::<CONVOLVED_INPUTS>(Kind::Bottleneck, stride, &steps, x, pass)
        }
    }
}

/// The stem on pixels `[batch, 3, R, R]`. `None` where only Burn can.
pub(crate) fn stem(
    tower: &resnet::ModifiedResNet,
    x: &Tensor<4>,
    pass: Pass<'_>,
) -> Option<Tensor<4>> {
    let steps =
        [(&tower.conv1, &tower.bn1), (&tower.conv2, &tower.bn2), (&tower.conv3, &tower.bn3)];
    apply::<PLAIN_INPUTS>(Kind::Stem, resnet::STEM_POOLING, &steps, x, pass)
}

/// Which block.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Stem,
    Bottleneck,
}

fn apply<const N: usize>(
    kind: Kind,
    stride: usize,
    steps: &[(&Conv2d, &BatchNorm2d)],
    x: &Tensor<4>,
    pass: Pass<'_>,
) -> Option<Tensor<4>> {
    // A tensor that came out of one of these has this order in memory.
    let rows = x.clone().permute([0, 2, 3, 1]);
    let [batch, height, width, _] = rows.dims();
    let mut inputs = Inputs::new(rows)?;
    let mut given = Vec::new();
    for (conv, norm) in steps {
        inputs.add(conv.weight.val())?;
        inputs.add(norm.gamma.val())?;
        inputs.add(norm.beta.val())?;
        if let Pass::Eval = pass {
            given.push(running(norm)?);
        }
    }
    // Burn has the gradient by running averages.
    if inputs.are_tracked() && !given.is_empty() {
        return None;
    }
    let size = Size { batch, height, width };
    let strides = steps.iter().map(|(conv, _)| conv.stride[0]).collect();
    let block = |sources| Block { kind, stride, strides, size, sources, given };
    let rows = inputs.apply::<N, 4, _>(block, |kept| {
        if let Pass::Train { update_statistics: true, .. } = pass {
            for ((_, norm), convolved) in steps.iter().zip(kept) {
                move_averages(norm, convolved);
            }
        }
    })?;
    Some(rows.permute([0, 3, 1, 2]))
}

/// Running averages, if they are in memory.
fn running(norm: &BatchNorm2d) -> Option<Moments> {
    let values =
        |state: &RunningState<Tensor<1>>| Some(Source::of(state.value())?.values().to_vec());
    let [mean, variance] = norm.averages();
    Some(Moments::new(values(mean)?, values(variance)?, EPSILON))
}

fn move_averages(norm: &BatchNorm2d, convolved: &Convolved) {
    let Moments { mean, variance, .. } = &convolved.moments;
    let count = convolved.count();
    let moments = [mean, variance].map(|values| {
        let data = TensorData::new(values.clone(), [values.len()]);
        Tensor::from_data(data, &Device::flex())
    });
    norm.move_averages(moments, count);
}

/// A block, its input and its parameters.
#[derive(Debug, Clone)]
struct Block {
    kind: Kind,
    /// Of the pooling.
    stride: usize,
    /// Of the convolutions.
    strides: Vec<usize>,
    size: Size,
    sources: Vec<Source>,
    /// Moments of evaluation.
    given: Vec<Moments>,
}

impl Block {
    fn step(&self, index: usize) -> Step<'_> {
        let [weight, scale, shift] = [1, 2, 3].map(|part| &self.sources[3 * index + part]);
        let shape = weight.shape();
        Step {
            conv: Conv {
                weight: weight.values(),
                outputs: shape[0],
                inputs: shape[1],
                kernel: shape[2],
                stride: self.strides[index],
            },
            norm: ChannelNorm { scale: scale.values(), shift: shift.values() },
            given: self.given.get(index).cloned(),
        }
    }

    fn stem(&self) -> bottleneck::Stem<'_> {
        bottleneck::Stem { steps: [0, 1, 2].map(|index| self.step(index)), stride: self.stride }
    }

    fn bottleneck(&self) -> bottleneck::Bottleneck<'_> {
        bottleneck::Bottleneck {
            branch: [0, 1, 2].map(|index| self.step(index)),
            shortcut: (self.strides.len() > 3).then(|| self.step(3)),
            stride: self.stride,
        }
    }
}

impl Operation for Block {
    type Kept = Vec<Convolved>;

    fn inputs(&self) -> &[Source] {
        &self.sources
    }

    fn forward(&self) -> (FlexTensor, Vec<Convolved>) {
        let x = self.sources[0].values();
        let ((y, kept), output) = match self.kind {
            Kind::Stem => {
                let stem = self.stem();
                (stem.forward(x, self.size), stem.output(self.size))
            }
            Kind::Bottleneck => {
                let block = self.bottleneck();
                (block.forward(x, self.size), block.output(self.size))
            }
        };
        let Size { batch, height, width } = output;
        let channels = self.step(2).conv.outputs;
        (tensor(y, Shape::from([batch, height, width, channels])), kept)
    }

    fn backward(&self, kept: Vec<Convolved>, gradient: Source, asked: bool) -> Vec<Vec<f32>> {
        let (x, gradient) = (self.sources[0].values(), gradient.values());
        match self.kind {
            Kind::Stem => self.stem().backward(x, self.size, &kept, gradient, asked),
            Kind::Bottleneck => self.bottleneck().backward(x, self.size, &kept, gradient),
        }
    }
}
