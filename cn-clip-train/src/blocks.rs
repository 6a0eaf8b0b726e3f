//! A tower as a chain of blocks, each with a graph of its own.

use burn::tensor::{Gradients, Tensor};
use cn_clip_model::{normalize, precision::track};

/// What is kept of the blocks.
#[derive(Debug)]
pub struct Trail<const D: usize> {
    /// Input of each block, and of what follows the last.
    pub inputs: Vec<Tensor<D>>,
    /// Unless it is checkpointed.
    pub graphs: Option<Graphs<D>>,
}

/// Graphs of the blocks, each from its input on.
#[derive(Debug)]
pub struct Graphs<const D: usize> {
    /// Output of what is before the first block, if that is trained, and of each block.
    outputs: Vec<Tensor<D>>,
    /// Normalised features.
    features: Tensor<2>,
}

impl<const D: usize> Trail<D> {
    /// Of one input.
    pub fn of(x: Tensor<D>) -> Self {
        Self { inputs: vec![x], graphs: None }
    }

    /// Input of the first block.
    pub fn first(&self) -> Option<Tensor<D>> {
        self.inputs.first().cloned()
    }
}

impl<const D: usize> Graphs<D> {
    /// Hands `collect` the gradients of each graph, the last first.
    pub fn backward(
        self,
        mut inputs: Vec<Tensor<D>>,
        gradient: Tensor<2>,
        collect: &mut dyn FnMut(Gradients),
    ) {
        let Self { mut outputs, features } = self;
        let mut gradients = surrogate(features, gradient).backward();
        loop {
            let gradient = inputs.pop().and_then(|input| input.grad_remove(&mut gradients));
            collect(gradients);
            let (Some(gradient), Some(output)) = (gradient, outputs.pop()) else { return };
            gradients = surrogate(output, gradient).backward();
        }
    }
}

/// A tower as a chain of blocks.
pub trait Blocks<const D: usize> {
    /// Input of the first block.
    fn first(&self) -> Tensor<D>;
    /// Blocks that are left out at the beginning, with what is before them, and their output.
    fn start(&self) -> Option<(usize, Tensor<D>)>;
    /// Number of blocks.
    fn count(&self) -> usize;
    /// Output of a block.
    fn block(&self, index: usize, x: Tensor<D>) -> Tensor<D>;
    /// Un-normalised features from the output of the last block.
    fn last(&self, x: Tensor<D>) -> Tensor<2>;

    /// Gradient of the input of a block by that of its output.
    fn block_backward(
        &self,
        index: usize,
        input: Tensor<D>,
        gradient: Tensor<D>,
        collect: &mut dyn FnMut(Gradients),
    ) -> Option<Tensor<D>> {
        through(input, gradient, |x| self.block(index, x), collect)
    }

    /// Takes the gradient of the input of the first block further back.
    fn first_backward(&self, gradient: Tensor<D>, collect: &mut dyn FnMut(Gradients)) {
        collect(surrogate(self.first(), gradient).backward());
    }

    /// Normalised features.
    fn features(&self) -> Tensor<2> {
        let (skipped, x) = self.start().unwrap_or_else(|| (0, self.first()));
        let x = (skipped..self.count()).fold(x, |x, index| self.block(index, x));
        normalize(self.last(x))
    }

    /// Normalised features without a graph, and the trail to them.
    fn keep(&self, graphs: bool) -> (Tensor<2>, Trail<D>) {
        let start = self.start();
        let trained = start.is_none();
        let (skipped, mut x) = start.unwrap_or_else(|| (0, self.first()));
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        // Each graph begins with the values the last one ended with.
        let mut enter = |x: Tensor<D>, trained: bool| {
            let input = match (graphs, trained) {
                (false, _) => x,
                (true, false) => track(x),
                (true, true) => {
                    let input = track(x.clone().inner()).require_grad();
                    outputs.push(x);
                    input
                }
            };
            inputs.push(input.clone());
            input
        };
        for index in skipped..self.count() {
            x = self.block(index, enter(x, trained || index > skipped));
        }
        let features = normalize(self.last(enter(x, trained || self.count() > skipped)));
        match graphs {
            false => (features, Trail { inputs, graphs: None }),
            true => {
                let graphs = Graphs { outputs, features: features.clone() };
                (features.inner(), Trail { inputs, graphs: Some(graphs) })
            }
        }
    }

    /// Input of block number `blocks`.
    fn prefix(&self, blocks: usize) -> Tensor<D> {
        (0..blocks).fold(self.first(), |x, index| self.block(index, x))
    }

    fn backward(
        &self,
        mut inputs: Vec<Tensor<D>>,
        gradient: Tensor<2>,
        collect: &mut dyn FnMut(Gradients),
    ) {
        let Some(input) = inputs.pop() else { return };
        let last = |x: Tensor<D>| normalize(self.last(x));
        let mut gradient = through(input, gradient, last, collect);
        let start = self.start();
        let skipped = start.as_ref().map_or(0, |(blocks, _)| *blocks);
        for index in (skipped..self.count()).rev() {
            let (Some(input), Some(output)) = (inputs.pop(), gradient) else { return };
            gradient = self.block_backward(index, input, output, collect);
        }
        if let (Some(gradient), None) = (gradient, start) {
            self.first_backward(gradient, collect);
        }
    }
}

/// Runs `block` with a graph and takes the gradient of its output back to its input.
pub fn through<const I: usize, const O: usize>(
    input: Tensor<I>,
    gradient: Tensor<O>,
    block: impl FnOnce(Tensor<I>) -> Tensor<O>,
    collect: &mut dyn FnMut(Gradients),
) -> Option<Tensor<I>> {
    let input = track(input).require_grad();
    let mut gradients = surrogate(block(input.clone()), gradient).backward();
    let gradient = input.grad_remove(&mut gradients);
    collect(gradients);
    gradient
}

/// A number whose derivative by `output` is `gradient`.
pub fn surrogate<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    (output * track(gradient)).sum()
}
