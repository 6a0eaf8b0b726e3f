//! Batch norms of a ResNet over the same micro-batch of all ranks, as `torch.nn.SyncBatchNorm`.
//!
//! Such a norm needs the other ranks in its backward pass as well: the gradient of its input holds
//! means over the whole batch. So the graph is cut at every norm. Forwards, what lies between two
//! norms gets a graph of its own, and the norm none; backwards, the gradient of a norm is computed
//! here and handed to the graph before it.

use std::cell::RefCell;

use burn::tensor::{Gradients, Tensor, TensorData, activation::relu};
use cn_clip_model::{
    Pass,
    precision::{as_type_of, to_fp32, track, without_graph},
    vision::{
        batch_norm::{BatchNorm2d, EPSILON},
        resnet::{Bottleneck, ModifiedResNet},
    },
};

use crate::{
    TrainError,
    blocks::{surrogate, through},
    communicator::Communicator,
    reduce::values,
};

/// Dimensions a batch norm takes its means over.
const SAMPLES: [usize; 3] = [0, 2, 3];

/// Joins batch norms of all ranks, which run the same tower on as many pictures.
pub struct SyncNorm<'a> {
    communicator: &'a dyn Communicator,
    /// The first exchange that failed. What follows it are numbers without a meaning.
    failure: RefCell<Option<TrainError>>,
}

/// A norm after the graph of what it normalises.
struct Link<'a> {
    norm: &'a BatchNorm2d,
    input: Tensor<4>,
    /// Output of the graph.
    x: Tensor<4>,
    /// Mean and biased variance over all ranks.
    moments: [Tensor<1>; 2],
}

/// What the backward pass of a bottleneck needs.
pub struct PassedBlock<'a> {
    branch: Vec<Link<'a>>,
    shortcut: Option<Link<'a>>,
    sum: Tensor<4>,
}

/// What the backward pass of the stem needs.
pub struct PassedStem<'a> {
    links: Vec<Link<'a>>,
    normalised: Tensor<4>,
}

impl<'a> SyncNorm<'a> {
    /// Norms over the ranks of a communicator.
    pub fn new(communicator: &'a dyn Communicator) -> Self {
        Self { communicator, failure: RefCell::new(None) }
    }

    /// An error if an exchange has failed.
    pub fn check(&self) -> Result<(), TrainError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Output of the stem for pixels `[batch, 3, R, R]`, without a graph.
    pub fn stem<'m>(
        &self,
        tower: &'m ModifiedResNet,
        pixels: Tensor<4>,
        pass: Pass<'_>,
    ) -> (PassedStem<'m>, Tensor<4>) {
        let mut links = Vec::new();
        let mut x = pixels;
        for (index, norm) in tower.stem_norms().into_iter().enumerate() {
            let input = if index == 0 { constant(x, norm) } else { leaf(x, norm) };
            let (link, y) = self.link(norm, input, pass, |x| tower.convolve_stem(index, x));
            links.push(link);
            x = y;
        }
        let output = ModifiedResNet::end_of_stem(x.clone());
        (PassedStem { links, normalised: x }, output)
    }

    /// Gradients of the parameters of the stem by that of its output.
    pub fn stem_backward(
        &self,
        stem: PassedStem<'_>,
        gradient: Tensor<4>,
        collect: &mut dyn FnMut(Gradients),
    ) {
        let end = ModifiedResNet::end_of_stem;
        let gradient = through(stem.normalised, gradient, end, collect);
        self.links_backward(stem.links, gradient, collect);
    }

    /// Output of a bottleneck, without a graph.
    pub fn block<'m>(
        &self,
        block: &'m Bottleneck,
        x: Tensor<4>,
        pass: Pass<'_>,
    ) -> (PassedBlock<'m>, Tensor<4>) {
        let mut branch = Vec::new();
        let mut y = x.clone();
        for (index, norm) in block.branch().into_iter().enumerate() {
            let (link, next) = self.link(norm, leaf(y, norm), pass, |x| block.convolve(index, x));
            branch.push(link);
            y = next;
        }
        let (shortcut, x) = match &block.downsample {
            None => (None, x),
            Some(shortcut) => {
                let norm = &shortcut.norm;
                let (link, x) =
                    self.link(norm, leaf(x, norm), pass, |x| block.convolve_shortcut(shortcut, x));
                (Some(link), x)
            }
        };
        let sum = y + x;
        let output = relu(sum.clone());
        (PassedBlock { branch, shortcut, sum }, output)
    }

    /// Gradient of the input of a bottleneck by that of its output.
    pub fn block_backward(
        &self,
        block: PassedBlock<'_>,
        gradient: Tensor<4>,
        collect: &mut dyn FnMut(Gradients),
    ) -> Option<Tensor<4>> {
        let gradient = gradient.mask_fill(block.sum.lower_equal_elem(0), 0);
        let branch = self.links_backward(block.branch, Some(gradient.clone()), collect)?;
        let shortcut = match block.shortcut {
            None => gradient,
            Some(link) => self.link_backward(link, gradient, collect)?,
        };
        Some(branch + shortcut)
    }

    /// The norm of what `graph` makes of `input`, without a graph.
    fn link<'m>(
        &self,
        norm: &'m BatchNorm2d,
        input: Tensor<4>,
        pass: Pass<'_>,
        graph: impl FnOnce(Tensor<4>) -> Tensor<4>,
    ) -> (Link<'m>, Tensor<4>) {
        let x = graph(input.clone());
        let wide = to_fp32(without_graph(x.clone()));
        let moments = self.moments(&wide);
        if let Pass::Train { update_statistics: true, .. } = pass {
            norm.move_averages(moments.clone(), self.count(&wide));
        }
        let normalised = norm.normalise_by(wide, moments.clone());
        let normalised = as_type_of(normalised, &x);
        (Link { norm, input, x, moments }, normalised)
    }

    fn links_backward(
        &self,
        links: Vec<Link<'_>>,
        gradient: Option<Tensor<4>>,
        collect: &mut dyn FnMut(Gradients),
    ) -> Option<Tensor<4>> {
        let back = |gradient: Option<_>, link| self.link_backward(link, gradient?, collect);
        links.into_iter().rev().fold(gradient, back)
    }

    /// Gradient of the input of the graph before a norm by that of the norm's output (Ioffe and
    /// Szegedy, arXiv 1502.03167, section 3). `None` where the input is a constant.
    fn link_backward(
        &self,
        link: Link<'_>,
        gradient: Tensor<4>,
        collect: &mut dyn FnMut(Gradients),
    ) -> Option<Tensor<4>> {
        let Link { norm, input, x, moments: [mean, variance] } = link;
        let (wide, gradient) = (to_fp32(without_graph(x.clone())), to_fp32(gradient));
        let channels = mean.dims()[0];
        let wise = |values: Tensor<1>| values.reshape([1, channels, 1, 1]);
        let inverse = (variance + EPSILON).sqrt().recip();
        let normalised = (wide - wise(mean)) * wise(inverse.clone());

        let shift: Tensor<1> = gradient.clone().sum_dims_squeeze(&SAMPLES);
        let scale: Tensor<1> = (gradient.clone() * normalised.clone()).sum_dims_squeeze(&SAMPLES);
        let parameters =
            surrogate(norm.gamma.val(), scale.clone()) + surrogate(norm.beta.val(), shift.clone());
        collect(parameters.backward());

        let share = 1.0 / self.count(&gradient) as f64;
        let [shift, scale] = self.sum([shift, scale]);
        let centred = gradient - wise(shift * share) - normalised * wise(scale * share);
        let gradient = centred * wise(without_graph(norm.gamma.val()) * inverse);
        let gradient = as_type_of(gradient, &x);
        let mut gradients = surrogate(x, gradient).backward();
        let gradient = input.grad_remove(&mut gradients);
        collect(gradients);
        gradient
    }
    /// Values of a channel of `x` on all ranks.
    fn count(&self, x: &Tensor<4>) -> usize {
        let [batch, _, height, width] = x.dims();
        batch * height * width * self.communicator.world_size()
    }

    /// Mean and biased variance of the channels over all ranks. Those of the ranks are joined, for
    /// a mean of squares less a square of means would lose digits.
    fn moments(&self, x: &Tensor<4>) -> [Tensor<1>; 2] {
        let mean = x.clone().mean_dims(&SAMPLES);
        let variance = (x.clone() - mean.clone()).square().mean_dims(&SAMPLES);
        let channels = x.dims()[1];
        let own: Vec<f32> = [values(mean), values(variance)].concat();
        let world = self.communicator.world_size();
        let all = match self.communicator.all_gather(own.clone()) {
            Ok(all) => all,
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
                own.repeat(world)
            }
        };
        let ranks = || all.chunks_exact(2 * channels);
        let share = 1.0 / world as f64;
        let joined = |channel: usize| {
            let mean: f64 = ranks().map(|rank| f64::from(rank[channel]) * share).sum();
            let of_rank = |rank: &[f32]| {
                let between = f64::from(rank[channel]) - mean;
                (f64::from(rank[channels + channel]) + between * between) * share
            };
            let variance: f64 = ranks().map(of_rank).sum();
            (mean as f32, variance as f32)
        };
        let (mean, variance): (Vec<_>, Vec<_>) = (0..channels).map(joined).unzip();
        let device = x.device();
        [mean, variance]
            .map(|values| Tensor::from_data(TensorData::new(values, [channels]), &device))
    }

    /// Sums of two tensors over all ranks.
    fn sum(&self, own: [Tensor<1>; 2]) -> [Tensor<1>; 2] {
        let (device, channels) = (own[0].device(), own[0].dims()[0]);
        let own = own.map(values).concat();
        let sums = self.communicator.all_reduce_sum(own.clone()).unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            own
        });
        let (first, second) = sums.split_at(channels);
        [first, second]
            .map(|values| Tensor::from_data(TensorData::new(values.to_vec(), [channels]), &device))
    }
}

/// `x` as an input whose gradient is asked for, where the model has gradients.
fn leaf(x: Tensor<4>, norm: &BatchNorm2d) -> Tensor<4> {
    if norm.gamma.val().is_autodiff() { track(x).require_grad() } else { x }
}

/// `x` as an input of which no gradient is asked, on the device of the model.
fn constant(x: Tensor<4>, norm: &BatchNorm2d) -> Tensor<4> {
    let x = without_graph(x);
    if norm.gamma.val().is_autodiff() { track(x) } else { x }
}
