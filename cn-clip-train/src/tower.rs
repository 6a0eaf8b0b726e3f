//! One tower on one micro-batch: features, and gradients of its parameters by those of the
//! features, one block at a time.
//!
//! A tower keeps the input and the graph of each block, or, checkpointed (arXiv 1604.06174), the
//! input only: then each block is run again with a graph in the backward pass. There it takes the
//! gradient of its output, and gives those of its parameters and of its input; then its graph is
//! dropped, and the gradients of its parameters are handed on. A block of a transformer is a layer,
//! one of a ResNet a stage.

use burn::tensor::{Gradients, Int, Tensor};
use cn_clip_model::{
    Clip, ImageTower, Pass,
    text::bert::{Bert, Padding},
    vision::{resnet::ModifiedResNet, vit::VisionTransformer},
};

use crate::{
    blocks::{Blocks, Trail, surrogate, through},
    sync_norm::SyncNorm,
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

/// What a tower keeps between encoding and backward.
#[derive(Debug)]
pub enum Activations {
    /// Of a transformer: `[batch, tokens, width]`.
    Tokens(Trail<3>),
    /// Of a ResNet: `[batch, channels, height, width]`.
    Maps(Trail<4>),
}

impl<'a> Tower<'a> {
    /// The image tower of `model` on pixels `[batch, 3, R, R]`; `keep` are the patches that FLIP
    /// keeps. With `sync` batch norms in training are those of all ranks: such a tower is
    /// checkpointed.
    pub fn image(
        model: &'a Clip,
        pixels: Tensor<4>,
        keep: Option<Tensor<2, Int>>,
        pass: Pass<'a>,
        sync: Option<&'a SyncNorm<'a>>,
    ) -> Self {
        match &model.visual {
            ImageTower::Vit(tower) => Self::Vit(Vit { tower, pixels, keep, start: None }),
            ImageTower::ResNet(tower) => {
                let sync = sync.filter(|_| matches!(pass, Pass::Train { .. }));
                Self::ResNet(ResNet { tower, pixels, pass, sync, start: None })
            }
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
            Self::Vit(tower) => Activations::Tokens(Trail::of(tower.prefix(blocks))),
            Self::ResNet(tower) => Activations::Maps(Trail::of(tower.prefix(blocks))),
            Self::Text(tower) => Activations::Tokens(Trail::of(tower.prefix(blocks))),
        }
    }

    /// The same without the first `blocks` and what is before them, whose output is the first of
    /// `kept`.
    pub fn after(mut self, blocks: usize, kept: &Activations) -> Self {
        match (&mut self, kept) {
            (Self::Vit(tower), Activations::Tokens(x)) => {
                tower.start = x.first().map(|x| (blocks, x));
            }
            (Self::Text(tower), Activations::Tokens(x)) => {
                tower.start = x.first().map(|x| (blocks, x));
            }
            (Self::ResNet(tower), Activations::Maps(x)) => {
                tower.start = x.first().map(|x| (blocks, x));
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
            Self::Vit(tower) => Blocks::features(tower),
            Self::ResNet(tower) => Blocks::features(tower),
            Self::Text(tower) => Blocks::features(tower),
        }
    }

    /// Normalised features without a graph, and what [`Activations::backward`] needs. Only a
    /// model on an autodiff device has `graphs` to keep.
    pub fn keep(&self, graphs: bool) -> (Tensor<2>, Activations) {
        match self {
            Self::Vit(tower) => {
                let (features, trail) = tower.keep(graphs);
                (features, Activations::Tokens(trail))
            }
            Self::ResNet(tower) => {
                let (features, trail) = tower.keep(graphs);
                (features, Activations::Maps(trail))
            }
            Self::Text(tower) => {
                let (features, trail) = tower.keep(graphs);
                (features, Activations::Tokens(trail))
            }
        }
    }
}

impl Activations {
    /// Hands `collect` the gradients of the blocks, last block first, given those of the
    /// normalised features. `tower` is asked for where blocks must be run again; its model is on an
    /// autodiff device.
    pub fn backward<'a>(
        self,
        tower: impl FnOnce(&Self) -> Tower<'a>,
        gradient: Tensor<2>,
        collect: &mut dyn FnMut(Gradients),
    ) {
        match self {
            Self::Tokens(Trail { inputs, graphs: Some(graphs) }) => {
                graphs.backward(inputs, gradient, collect);
            }
            Self::Maps(Trail { inputs, graphs: Some(graphs) }) => {
                graphs.backward(inputs, gradient, collect);
            }
            kept => match (tower(&kept), kept) {
                (Tower::Vit(tower), Self::Tokens(x)) => tower.backward(x.inputs, gradient, collect),
                (Tower::Text(tower), Self::Tokens(x)) => {
                    tower.backward(x.inputs, gradient, collect)
                }
                (Tower::ResNet(tower), Self::Maps(x)) => {
                    tower.backward(x.inputs, gradient, collect)
                }
                (_, Self::Tokens(_) | Self::Maps(_)) => {
                    unreachable!("activations of another tower")
                }
            },
        }
    }
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
    sync: Option<&'a SyncNorm<'a>>,
    start: Option<(usize, Tensor<4>)>,
}

impl Blocks<4> for ResNet<'_> {
    fn first(&self) -> Tensor<4> {
        match self.sync {
            Some(sync) => sync.stem(self.tower, self.pixels.clone(), self.pass).1,
            None => self.tower.stem(self.pixels.clone(), self.pass),
        }
    }

    fn start(&self) -> Option<(usize, Tensor<4>)> {
        self.start.clone()
    }

    fn count(&self) -> usize {
        self.tower.stages().len()
    }

    fn block(&self, index: usize, x: Tensor<4>) -> Tensor<4> {
        let blocks = self.tower.stages()[index];
        match self.sync {
            Some(sync) => blocks.iter().fold(x, |x, block| sync.block(block, x, self.pass).1),
            None => ModifiedResNet::stage(blocks, x, self.pass),
        }
    }

    fn last(&self, x: Tensor<4>) -> Tensor<2> {
        self.tower.attnpool.forward(x)
    }

    fn block_backward(
        &self,
        index: usize,
        input: Tensor<4>,
        gradient: Tensor<4>,
        collect: &mut dyn FnMut(Gradients),
    ) -> Option<Tensor<4>> {
        let Some(sync) = self.sync else {
            return through(input, gradient, |x| self.block(index, x), collect);
        };
        let mut x = input;
        let mut passed = Vec::new();
        for block in self.tower.stages()[index] {
            let (block, y) = sync.block(block, x, self.pass);
            passed.push(block);
            x = y;
        }
        let back = |gradient: Option<_>, block| sync.block_backward(block, gradient?, collect);
        passed.into_iter().rev().fold(Some(gradient), back)
    }

    fn first_backward(&self, gradient: Tensor<4>, collect: &mut dyn FnMut(Gradients)) {
        match self.sync {
            Some(sync) => {
                let (stem, _) = sync.stem(self.tower, self.pixels.clone(), self.pass);
                sync.stem_backward(stem, gradient, collect);
            }
            None => collect(surrogate(self.first(), gradient).backward()),
        }
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
