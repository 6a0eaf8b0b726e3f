//! The two towers and what joins them (arXiv 2103.00020, arXiv 2211.01335).

use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor, TensorData},
};

use crate::{
    config::{ClipConfig, VisionLayers},
    host::{Numbers, Prepared},
    init::{Init, Values},
    precision::to_fp32,
    random::SampleRng,
    text::bert::Bert,
    vision::{resnet::ModifiedResNet, vit::VisionTransformer},
};

/// Initial `ln(1 / 0.07)` of the logit scale.
pub const INITIAL_LOGIT_SCALE: f32 = 2.659_26;

/// How a forward pass behaves.
#[derive(Debug, Clone, Copy)]
pub enum Pass<'a> {
    /// No dropout, batch norm by its running averages.
    Eval,
    /// Dropout by the samples' random streams, batch norm by the batch.
    Train {
        /// Random streams of the samples of this batch.
        rng: &'a SampleRng,
        /// Whether batch norm moves its running averages: once per step, not when recomputing.
        update_statistics: bool,
    },
}

impl<'a> Pass<'a> {
    /// Random streams of the samples, in training.
    pub fn rng(&self) -> Option<&'a SampleRng> {
        match self {
            Self::Eval => None,
            Self::Train { rng, .. } => Some(*rng),
        }
    }
}

/// Image tower of either kind.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // One per model; parameters are behind pointers anyway.
pub enum ImageTower {
    /// Vision transformer.
    Vit(VisionTransformer),
    /// ModifiedResNet.
    ResNet(ModifiedResNet),
}

/// Chinese-CLIP.
#[derive(Module, Debug)]
pub struct Clip {
    /// `[hidden, embed_dim]`, no bias.
    pub text_projection: Param<Tensor<2>>,
    /// Logarithm of the factor of similarities, `[1]`.
    pub logit_scale: Param<Tensor<1>>,
    /// Image tower.
    pub visual: ImageTower,
    /// Text tower.
    pub bert: Bert,
}

impl Clip {
    /// A model with the official initialisation, drawn from `seed` when first used.
    pub fn init(config: &ClipConfig, device: &Device, seed: u64) -> Self {
        let init = Init::new(device, seed);
        let vision = &config.vision;
        let visual = match (&vision.layers, vision.patch_size) {
            (VisionLayers::Transformer(depth), patch) => ImageTower::Vit(VisionTransformer::init(
                vision,
                patch.unwrap_or(vision.image_resolution),
                *depth,
                &init.at("visual"),
            )),
            (VisionLayers::ResNet(stages), _) => {
                ImageTower::ResNet(ModifiedResNet::init(vision, *stages, &init.at("visual")))
            }
        };
        let hidden = config.text.hidden_size;
        Self {
            text_projection: init.param(
                "text_projection",
                [hidden, vision.embed_dim],
                Values::Normal((hidden as f64).powf(-0.5)),
            ),
            logit_scale: init.param("logit_scale", [1], Values::Constant(INITIAL_LOGIT_SCALE)),
            visual,
            bert: Bert::init(&config.text, &init.at("bert")),
        }
    }

    /// Pixels `[batch, 3, R, R]` (normalised as by the reference's transform) to un-normalised
    /// image features `[batch, embed_dim]`.
    ///
    /// `keep` (`[batch, kept]` patch indices) masks patches as FLIP does; a ResNet ignores it.
    pub fn encode_image(
        &self,
        pixels: Tensor<4>,
        keep: Option<Tensor<2, Int>>,
        pass: Pass<'_>,
    ) -> Tensor<2> {
        match &self.visual {
            ImageTower::Vit(tower) => match (keep, pass) {
                (None, Pass::Eval) => tower.evaluate(pixels),
                (keep, _) => tower.forward(pixels, keep),
            },
            ImageTower::ResNet(tower) => tower.forward(pixels, pass),
        }
    }

    /// Token ids `[batch, tokens]`, zero-padded, to un-normalised text features
    /// `[batch, embed_dim]`.
    pub fn encode_text(&self, tokens: Tensor<2, Int>, pass: Pass<'_>) -> Tensor<2> {
        self.bert.forward(tokens, pass).matmul(self.text_projection.val())
    }

    /// Patches that `ratio` masking keeps for these samples; `None` where nothing is masked.
    pub fn keep_patches(
        &self,
        ratio: f64,
        rng: &SampleRng,
        device: &Device,
    ) -> Option<Tensor<2, Int>> {
        match &self.visual {
            ImageTower::Vit(tower) if ratio > 0.0 => {
                Some(rng.keep_patches(tower.patches(), ratio, device))
            }
            _ => None,
        }
    }

    /// Similarities `[images, texts]` of normalised features, times the learnt scale.
    pub fn similarity(&self, image_features: Tensor<2>, text_features: Tensor<2>) -> Tensor<2> {
        let scale = self.logit_scale.val().exp().unsqueeze::<2>();
        image_features.matmul(text_features.transpose()) * scale
    }

    /// Takes over the running averages of batch norm from a copy of this model: those that
    /// [`Module::valid`] makes go their own way.
    pub fn adopt_statistics(&self, copy: &Self) {
        if let (ImageTower::ResNet(own), ImageTower::ResNet(copy)) = (&self.visual, &copy.visual) {
            own.adopt_statistics(copy);
        }
    }

    /// Running means and variances of all batch norms, one after the other; empty without any.
    pub fn running_statistics(&self) -> Vec<f32> {
        match &self.visual {
            ImageTower::ResNet(tower) => tower.running_statistics(),
            ImageTower::Vit(_) => Vec::new(),
        }
    }

    /// Sets what [`running_statistics`](Self::running_statistics) has given.
    pub fn set_running_statistics(&self, values: &[f32]) {
        if let ImageTower::ResNet(tower) = &self.visual {
            tower.set_running_statistics(values);
        }
    }

    /// Frees the copy of the weights that evaluation on the processor works with, as large as the
    /// transformers; the next evaluation makes it again.
    pub fn release_prepared(&self) {
        if let ImageTower::Vit(tower) = &self.visual {
            tower.prepared.release();
        }
        self.bert.prepared.release();
    }

    /// This model, whose evaluation on the processor multiplies these numbers.
    pub(crate) fn with_numbers(mut self, numbers: Numbers) -> Self {
        if let ImageTower::Vit(tower) = &mut self.visual {
            tower.prepared = Prepared::new(numbers);
        }
        self.bert.prepared = Prepared::new(numbers);
        self
    }

    /// Device of the parameters.
    pub fn device(&self) -> Device {
        self.logit_scale.val().device()
    }
}

/// Divides each row by its Euclidean norm, without an epsilon, as the reference does; in 32 bits.
pub fn normalize(features: Tensor<2>) -> Tensor<2> {
    let features = to_fp32(features);
    let norm = features.clone().square().sum_dim(1).sqrt();
    features / norm
}

/// Token ids `[batch, context_length]` (row-major) as a tensor, cut to the longest text of the
/// batch. Exact: masked positions do not contribute.
pub fn token_tensor(tokens: &[i32], context_length: usize, device: &Device) -> Tensor<2, Int> {
    let used = |row: &[i32]| row.iter().rposition(|id| *id != 0).map_or(1, |last| last + 1);
    let length = tokens.chunks(context_length).map(used).max().unwrap_or(1);
    let rows = tokens.len() / context_length;
    let trimmed: Vec<i32> =
        tokens.chunks(context_length).flat_map(|row| row[..length].iter().copied()).collect();
    Tensor::from_data(TensorData::new(trimmed, [rows, length]), device)
}
