//! One tower on one micro-batch: features, and gradients of its parameters by those of the
//! features, with the graph of the whole tower or of one block at a time.
//!
//! Checkpointed (arXiv 1604.06174), a tower keeps the input of each block only. In the backward
//! pass each block is run again with a graph, takes the gradient of its output, and gives those of
//! its parameters and of its input; then its graph is dropped. A block of a transformer is a layer,
//! one of a ResNet a stage.

use burn::tensor::{Gradients, Int, Tensor};
use cn_clip_model::{
    Clip, ImageTower, Pass, normalize,
    precision::track,
    text::bert::{Bert, Padding},
    vision::{resnet::ModifiedResNet, vit::VisionTransformer},
};

/// A tower and its input.
pub enum Tower<'a> {
    /// Vision transformer.
    Vit(Vit<'a>),
    /// ResNet.
    ResNet(ResNet<'a>),
    /// BERT.
    Text(Text<'a>),
}

/// What a checkpointed tower keeps: the input of each block, and the output of the last.
#[derive(Debug)]
pub enum Activations {
    /// Of a transformer: `[batch, tokens, width]`.
    Tokens(Vec<Tensor<3>>),
    /// Of a ResNet: `[batch, channels, height, width]`.
    Maps(Vec<Tensor<4>>),
}

impl<'a> Tower<'a> {
    /// The image tower of `model` on pixels `[batch, 3, R, R]`; `keep` are the patches that FLIP
    /// keeps.
    pub fn image(
        model: &'a Clip,
        pixels: Tensor<4>,
        keep: Option<Tensor<2, Int>>,
        pass: Pass<'a>,
    ) -> Self {
        match &model.visual {
            ImageTower::Vit(tower) => Self::Vit(Vit { tower, pixels, keep, start: None }),
            ImageTower::ResNet(tower) => Self::ResNet(ResNet { tower, pixels, pass, start: None }),
        }
    }

    /// The text tower of `model` on token ids `[batch, tokens]`.
    pub fn text(model: &'a Clip, tokens: Tensor<2, Int>, pass: Pass<'a>) -> Self {
        let padding = Bert::padding(tokens.clone(), &model.device());
        Self::Text(Text { model, tokens, padding, pass, start: None })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Vit(tower) => tower.count(),
            Self::ResNet(tower) => tower.count(),
            Self::Text(tower) => tower.count(),
        }
    }

    /// Input of block number `blocks`.
    pub fn prefix(&self, blocks: usize) -> Activations {
        match self {
            Self::Vit(tower) => Activations::Tokens(vec![tower.prefix(blocks)]),
            Self::ResNet(tower) => Activations::Maps(vec![tower.prefix(blocks)]),
            Self::Text(tower) => Activations::Tokens(vec![tower.prefix(blocks)]),
        }
    }

    /// The same without the first `blocks` and what is before them, given their output.
    pub fn after(mut self, blocks: usize, output: Activations) -> Self {
        match (&mut self, output) {
            (Self::Vit(tower), Activations::Tokens(mut x)) => {
                tower.start = x.pop().map(|x| (blocks, x));
            }
            (Self::Text(tower), Activations::Tokens(mut x)) => {
                tower.start = x.pop().map(|x| (blocks, x));
            }
            (Self::ResNet(tower), Activations::Maps(mut x)) => {
                tower.start = x.pop().map(|x| (blocks, x));
            }
            (_, Activations::Tokens(_) | Activations::Maps(_)) => {
                unreachable!("output of another tower")
            }
        }
        self
    }

    /// Normalised features `[batch, embed_dim]`.
    pub fn features(&self) -> Tensor<2> {
        match self {
            Self::Vit(tower) => tower.run(|_| ()),
            Self::ResNet(tower) => tower.run(|_| ()),
            Self::Text(tower) => tower.run(|_| ()),
        }
    }

    /// Normalised features, and what [`backward`](Self::backward) needs. The model should be
    /// without autodiff.
    pub fn checkpoint(&self) -> (Tensor<2>, Activations) {
        let (mut tokens, mut maps) = (Vec::new(), Vec::new());
        match self {
            Self::Vit(tower) => {
                (tower.run(|x| tokens.push(x.clone())), Activations::Tokens(tokens))
            }
            Self::ResNet(tower) => (tower.run(|x| maps.push(x.clone())), Activations::Maps(maps)),
            Self::Text(tower) => {
                (tower.run(|x| tokens.push(x.clone())), Activations::Tokens(tokens))
            }
        }
    }

    /// Hands `collect` the gradients of the blocks, last block first, given those of the
    /// normalised features. The model must be on an autodiff device.
    pub fn backward(
        &self,
        activations: Activations,
        gradient: Tensor<2>,
        collect: &mut dyn FnMut(Gradients),
    ) {
        match (self, activations) {
            (Self::Vit(tower), Activations::Tokens(x)) => tower.backward(x, gradient, collect),
            (Self::Text(tower), Activations::Tokens(x)) => tower.backward(x, gradient, collect),
            (Self::ResNet(tower), Activations::Maps(x)) => tower.backward(x, gradient, collect),
            (_, Activations::Tokens(_) | Activations::Maps(_)) => {
                unreachable!("activations of another tower")
            }
        }
    }
}

impl Activations {
    /// The same on an autodiff device.
    pub fn tracked(self) -> Self {
        match self {
            Self::Tokens(x) => Self::Tokens(x.into_iter().map(track).collect()),
            Self::Maps(x) => Self::Maps(x.into_iter().map(track).collect()),
        }
    }
}

/// A tower as a chain of blocks.
trait Blocks<const D: usize> {
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

    /// Normalised features; `see` is shown every [`Activations`] on the way.
    fn run(&self, mut see: impl FnMut(&Tensor<D>)) -> Tensor<2> {
        let (skipped, mut x) = self.start().unwrap_or_else(|| (0, self.first()));
        see(&x);
        for index in skipped..self.count() {
            x = self.block(index, x);
            see(&x);
        }
        normalize(self.last(x))
    }

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
            gradient = through(input, output, |x| self.block(index, x), collect);
        }
        if let (Some(gradient), None) = (gradient, start) {
            collect(surrogate(self.first(), gradient).backward());
        }
    }
}

/// Runs `block` with a graph and takes the gradient of its output back to its input.
fn through<const I: usize, const O: usize>(
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

/// Vision transformer and its input.
pub struct Vit<'a> {
    tower: &'a VisionTransformer,
    pixels: Tensor<4>,
    keep: Option<Tensor<2, Int>>,
    start: Option<(usize, Tensor<3>)>,
}

impl Blocks<3> for Vit<'_> {
    fn first(&self) -> Tensor<3> {
        self.tower.embed(self.pixels.clone(), self.keep.clone())
    }

    fn start(&self) -> Option<(usize, Tensor<3>)> {
        self.start.clone()
    }

    fn count(&self) -> usize {
        self.tower.transformer.resblocks.len()
    }

    fn block(&self, index: usize, x: Tensor<3>) -> Tensor<3> {
        let block = &self.tower.transformer.resblocks[index];
        if index + 1 == self.count() { block.forward_first(x) } else { block.forward(x) }
    }

    fn last(&self, x: Tensor<3>) -> Tensor<2> {
        self.tower.head(x)
    }
}

/// ResNet and its input.
pub struct ResNet<'a> {
    tower: &'a ModifiedResNet,
    pixels: Tensor<4>,
    pass: Pass<'a>,
    start: Option<(usize, Tensor<4>)>,
}

impl Blocks<4> for ResNet<'_> {
    fn first(&self) -> Tensor<4> {
        self.tower.stem(self.pixels.clone(), self.pass)
    }

    fn start(&self) -> Option<(usize, Tensor<4>)> {
        self.start.clone()
    }

    fn count(&self) -> usize {
        self.tower.stages().len()
    }

    fn block(&self, index: usize, x: Tensor<4>) -> Tensor<4> {
        ModifiedResNet::stage(self.tower.stages()[index], x, self.pass)
    }

    fn last(&self, x: Tensor<4>) -> Tensor<2> {
        self.tower.attnpool.forward(x)
    }
}

/// BERT and its input.
pub struct Text<'a> {
    model: &'a Clip,
    tokens: Tensor<2, Int>,
    padding: Padding,
    pass: Pass<'a>,
    start: Option<(usize, Tensor<3>)>,
}

impl Blocks<3> for Text<'_> {
    fn first(&self) -> Tensor<3> {
        self.model.bert.embed(self.tokens.clone(), self.pass)
    }

    fn start(&self) -> Option<(usize, Tensor<3>)> {
        self.start.clone()
    }

    fn count(&self) -> usize {
        self.model.bert.encoder.layer.len()
    }

    fn block(&self, index: usize, x: Tensor<3>) -> Tensor<3> {
        let last = index + 1 == self.count();
        self.model.bert.layer(index, x, &self.padding, self.pass, last)
    }

    fn last(&self, x: Tensor<3>) -> Tensor<2> {
        let first = x.slice_dim(1, 0..1).squeeze_dim::<2>(1);
        first.matmul(self.model.text_projection.val())
    }
}
