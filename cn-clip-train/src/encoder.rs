//! The towers of a step: micro-batches to features, and gradients of features to those of
//! parameters.

use burn::{optim::GradientsParams, tensor::Tensor};
use cn_clip_model::{Clip, Pass, SampleRng};

use crate::{
    depth::Side,
    step::{MicroBatch, StepOptions, Training},
    sync_norm::SyncNorm,
    tower::{Activations, Tower},
};

/// What is kept of a tower between encoding and backward.
#[allow(clippy::large_enum_variant)] // Two per micro-batch.
pub(crate) enum Kept {
    /// Graphs or inputs of the blocks.
    Activations(Activations),
    /// Nothing: it is encoded again.
    Nothing,
    /// Nothing: it is not trained.
    Frozen,
}

/// What goes into a tower.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    pub side: Side,
    pub batch: &'a MicroBatch,
    pub rng: &'a SampleRng,
}

/// Encodes micro-batches, and takes gradients back.
pub(crate) struct Encoder<'a> {
    pub model: &'a Clip,
    /// The model without autodiff.
    pub plain: &'a Clip,
    pub options: StepOptions,
    /// Whether there is only one micro-batch, of which everything can be kept.
    pub single: bool,
    /// Whether batch norms are those of all ranks.
    pub sync: bool,
}

impl<'a> Encoder<'a> {
    /// Whether the first pass is that of the model itself, with its graphs.
    pub fn keeps_graphs(&self, side: Side) -> bool {
        self.single && !self.checkpoints(side)
    }

    /// Whether blocks are run again in the backward pass.
    fn checkpoints(&self, side: Side) -> bool {
        self.options.checkpointing || self.sync && matches!(side, Side::Image)
    }

    /// What of a tower is trained.
    fn training(&self, side: Side) -> Training {
        match side {
            Side::Image => self.options.vision,
            Side::Text => self.options.text,
        }
    }

    /// The trained part of a tower, that of `model`, behind the part that is not trained, whose
    /// output may be `known`.
    fn tower(
        &self,
        input: Input<'a>,
        sync: Option<&'a SyncNorm<'a>>,
        model: &'a Clip,
        pass: Pass<'a>,
        known: Option<&Activations>,
    ) -> Tower<'a> {
        let Input { side, batch, rng } = input;
        let whole = |model: &'a Clip, pass: Pass<'a>| {
            let device = model.device();
            match side {
                Side::Image => {
                    let keep = model.keep_patches(self.options.mask_ratio, rng, &device);
                    let pixels = batch.pixels_in(self.options.precision, &device);
                    Tower::image(model, pixels, keep, pass, sync)
                }
                Side::Text => Tower::text(model, batch.tokens(&device), pass),
            }
        };
        let tower = whole(model, pass);
        let Training::Last(blocks) = self.training(side) else { return tower };
        let locked = tower.blocks().saturating_sub(blocks);
        match known {
            Some(known) => tower.after(locked, known),
            None => tower.after(locked, &whole(self.plain, Pass::Eval).prefix(locked)),
        }
    }

    /// Normalised features without a graph, and what is kept for the backward pass. With `sync`
    /// batch norms are those of all ranks.
    pub fn encode(&self, input: Input<'a>, sync: Option<&'a SyncNorm<'a>>) -> (Tensor<2>, Kept) {
        if self.training(input.side) == Training::Frozen {
            return (
                self.tower(input, sync, self.plain, Pass::Eval, None).features(),
                Kept::Frozen,
            );
        }
        let pass = Pass::Train { rng: input.rng, update_statistics: true };
        if !self.single {
            return (self.tower(input, sync, self.plain, pass, None).features(), Kept::Nothing);
        }
        let (features, kept) = self.keep(input, sync, pass);
        (features, Kept::Activations(kept))
    }

    /// Features, and what the backward pass needs.
    fn keep(
        &self,
        input: Input<'a>,
        sync: Option<&'a SyncNorm<'a>>,
        pass: Pass<'a>,
    ) -> (Tensor<2>, Activations) {
        let graphs = !self.checkpoints(input.side);
        let model = if graphs { self.model } else { self.plain };
        self.tower(input, sync, model, pass, None).keep(graphs)
    }

    /// Hands `take` the gradients of the parameters, in parts, by those of the normalised features.
    pub fn backward(
        &self,
        input: Input<'a>,
        sync: Option<&'a SyncNorm<'a>>,
        kept: Kept,
        gradient: Tensor<2>,
        take: &mut dyn FnMut(GradientsParams),
    ) {
        let pass = Pass::Train { rng: input.rng, update_statistics: false };
        let kept = match kept {
            Kept::Frozen => return,
            Kept::Nothing => self.keep(input, sync, pass).1,
            Kept::Activations(kept) => kept,
        };
        let again = |kept: &Activations| self.tower(input, sync, self.model, pass, Some(kept));
        kept.backward(again, gradient, &mut |gradients| {
            take(GradientsParams::from_grads(gradients, self.model));
        });
    }
}
