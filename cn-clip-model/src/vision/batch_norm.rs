//! Batch normalisation with the conventions of PyTorch.
//!
//! Burn's own module keeps the biased variance in its running average; PyTorch keeps the unbiased
//! one, and official checkpoints carry a batch counter.

use burn::{
    module::{Module, Param, RunningState},
    tensor::{
        Tensor,
        module::{batch_norm, batch_norm_train},
    },
};

use crate::{
    clip::Pass,
    init::{Init, Values},
    precision::{beside, in_fp32, without_graph},
};

/// What is added to variances.
pub const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch normalisation over `[batch, channels, height, width]`.
#[derive(Module, Debug)]
pub struct BatchNorm2d {
    /// Scale `[channels]`.
    pub gamma: Param<Tensor<1>>,
    /// Shift `[channels]`.
    pub beta: Param<Tensor<1>>,
    /// Running mean `[channels]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// Running unbiased variance `[channels]`.
    pub running_var: RunningState<Tensor<1>>,
    /// Number of batches seen, `[1]`.
    pub num_batches_tracked: RunningState<Tensor<1>>,
}

impl BatchNorm2d {
    pub(crate) fn init(channels: usize, scale: f32, init: &Init) -> Self {
        let device = init.device();
        Self {
            gamma: init.param("weight", [channels], Values::Constant(scale)),
            beta: init.param("bias", [channels], Values::Constant(0.0)),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
            num_batches_tracked: RunningState::new(Tensor::zeros([1], device)),
        }
    }

    /// Normalises by the batch in training and by the running averages otherwise.
    pub fn forward(&self, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        in_fp32(x, |x| self.normalise(x, pass))
    }

    fn normalise(&self, x: Tensor<4>, pass: Pass<'_>) -> Tensor<4> {
        let Pass::Train { update_statistics, .. } = pass else {
            let mean = beside(self.running_mean.value(), &x);
            let variance = beside(self.running_var.value(), &x);
            return batch_norm(x, self.gamma.val(), self.beta.val(), mean, variance, EPSILON);
        };
        let [batch, _, height, width] = x.dims();
        let result = batch_norm_train(x, self.gamma.val(), self.beta.val(), EPSILON);
        if update_statistics {
            let moments = [result.mean.detach(), result.variance.detach()];
            self.move_averages(moments, batch * height * width);
        }
        result.output
    }

    /// Normalises by a mean and a biased variance `[channels]`, without a graph.
    pub fn normalise_by(&self, x: Tensor<4>, [mean, variance]: [Tensor<1>; 2]) -> Tensor<4> {
        let (gamma, beta) = (without_graph(self.gamma.val()), without_graph(self.beta.val()));
        batch_norm(x, gamma, beta, mean, variance, EPSILON)
    }

    /// Moves the running averages towards the mean and the biased variance of a batch, in which each
    /// channel has `count` values.
    pub fn move_averages(&self, [mean, variance]: [Tensor<1>; 2], count: usize) {
        let count = count as f64;
        average(&self.running_mean, mean);
        average(&self.running_var, variance * (count / (count - 1.0).max(1.0)));
        move_to(&self.num_batches_tracked, self.num_batches_tracked.value_sync() + 1.0);
    }

    /// Running mean and variance.
    pub(crate) fn averages(&self) -> [&RunningState<Tensor<1>>; 2] {
        [&self.running_mean, &self.running_var]
    }

    /// Sets one of them.
    pub(crate) fn set(average: &RunningState<Tensor<1>>, value: Tensor<1>) {
        move_to(average, value);
    }

    /// Takes over the running averages of a copy, which may be without autodiff.
    pub(crate) fn adopt_statistics(&self, copy: &Self) {
        let pairs = [
            (&self.running_mean, &copy.running_mean),
            (&self.running_var, &copy.running_var),
            (&self.num_batches_tracked, &copy.num_batches_tracked),
        ];
        for (own, copy) in pairs {
            move_to(own, beside(without_graph(copy.value_sync()), &own.value()));
        }
    }
}

fn average(state: &RunningState<Tensor<1>>, value: Tensor<1>) {
    let (old, value) = (state.value_sync(), without_graph(value));
    let moved = without_graph(old.clone()) * (1.0 - MOMENTUM) + value * MOMENTUM;
    move_to(state, beside(moved, &old));
}

fn move_to(state: &RunningState<Tensor<1>>, value: Tensor<1>) {
    state.update(value);
    // An update is only seen by module visitors, and so by checkpoints, once it is synced.
    state.value_sync();
}
