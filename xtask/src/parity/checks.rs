//! The checks.

use burn::tensor::{Device, TensorData};
use cn_clip_model::{Precision, SampleRng};
use cn_clip_train::step::StepOptions;

use super::{
    golden::Errors,
    search,
    steps::{adamw, autodiff_loss, options, step, tiled_loss, whole_step},
    tolerance::Kind,
    towers::{forward, image_layers, masked_forward, text_layers},
};

/// Where a check runs, and in which numbers.
#[derive(Debug)]
pub struct Place<'a> {
    pub device: &'a Device,
    /// Whether the device computes in ordinary memory.
    pub host: bool,
    /// The processor.
    pub reference: &'a Device,
    pub precision: Precision,
}

/// A comparison with recordings.
#[derive(Debug)]
pub struct Check {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether it is the same in every precision.
    pub fp32_only: bool,
    /// Whether it evaluates as users do, which is all that some precisions are for.
    pub evaluates: bool,
    pub run: fn(&Place<'_>) -> Errors,
}

impl Check {
    pub(super) const fn new(name: &'static str, kind: Kind, run: fn(&Place<'_>) -> Errors) -> Self {
        Self { name, kind, fp32_only: false, evaluates: false, run }
    }

    pub(super) const fn fp32(self) -> Self {
        Self { fp32_only: true, ..self }
    }

    const fn evaluation(self) -> Self {
        Self { evaluates: true, ..self }
    }

    /// Whether it says something in this precision.
    pub fn is_for(&self, precision: Precision) -> bool {
        match precision {
            Precision::Fp32 => true,
            _ => !self.fp32_only && (precision.trains() || self.evaluates),
        }
    }
}

/// All of them, the simple ones first: the first that fails is nearest to the cause.
///
/// The batch norms of the tiny ResNet see five numbers in training, of which rounding to 16 bits
/// leaves nothing to compare; there its gradients are those with running averages.
pub const CHECKS: [Check; 21] = [
    Check::new("dropout masks", Kind::Exact, |p| dropout_masks(p.device, p.reference)).fp32(),
    Check::new("ViT, layers", Kind::Forward, |p| image_layers("vit_tiny", p.device, p.precision)),
    Check::new("ResNet, layers", Kind::Forward, |p| image_layers("rn_tiny", p.device, p.precision)),
    Check::new("BERT, layers", Kind::Forward, |p| text_layers("vit_tiny", p.device, p.precision)),
    Check::new("ViT, forward", Kind::Forward, |p| forward("vit_tiny", p.device, p.precision))
        .evaluation(),
    Check::new("ResNet, forward", Kind::Forward, |p| forward("rn_tiny", p.device, p.precision)),
    Check::new("ViT masked, forward", Kind::Forward, |p| masked_forward(p.device, p.precision)),
    Check::new("tiled loss", Kind::Forward, |p| tiled_loss(p.device, p.reference)).fp32(),
    Check::new("ViT, autodiff loss", Kind::Gradient, |p| {
        autodiff_loss("vit_tiny", p.device, p.precision, false)
    }),
    Check::new("ResNet, autodiff loss", Kind::RoughGradient, |p| {
        autodiff_loss("rn_tiny", p.device, p.precision, false)
    }),
    Check::new("ViT masked, autodiff loss", Kind::Gradient, |p| {
        autodiff_loss("vit_tiny", p.device, p.precision, true)
    }),
    Check::new("ViT, step", Kind::Gradient, |p| step("vit_tiny", p.device, options(p.precision))),
    Check::new("ViT, step checkpointed", Kind::Gradient, |p| {
        step("vit_tiny", p.device, checkpointed(p.precision))
    }),
    Check::new("ResNet, step", Kind::Gradient, |p| step("rn_tiny", p.device, options(p.precision)))
        .fp32(),
    Check::new("ResNet, step checkpointed", Kind::Gradient, |p| {
        step("rn_tiny", p.device, checkpointed(p.precision))
    })
    .fp32(),
    Check::new("ViT, 5 steps of AdamW", Kind::Parameters, |p| adamw("vit_tiny", p.device, p.host))
        .fp32(),
    Check::new("ResNet, 5 steps of AdamW", Kind::Parameters, |p| {
        adamw("rn_tiny", p.device, p.host)
    })
    .fp32(),
    Check::new("everything at once, gradients", Kind::Gradient, |p| {
        let [gradients, _] = whole_step(p.device, p.host, options(p.precision), p.reference);
        gradients
    }),
    Check::new("everything at once, parameters", Kind::Parameters, |p| {
        let [_, parameters] = whole_step(p.device, p.host, options(p.precision), p.reference);
        parameters
    })
    .fp32(),
    Check::new("extraction", Kind::Forward, |p| search::extraction(p.device, p.precision))
        .evaluation(),
    Check::new("top-k", Kind::Exact, |p| search::top_k(p.device)).fp32(),
];

fn checkpointed(precision: Precision) -> StepOptions {
    StepOptions { checkpointing: true, ..options(precision) }
}

/// Masks are functions of the seed, on every device the same.
fn dropout_masks(device: &Device, reference: &Device) -> Errors {
    let mut errors = Errors::default();
    let rng = SampleRng::for_step(7, 3, 0..5);
    let values = |data: TensorData| data.iter::<f32>().collect::<Vec<_>>();
    let [found, expected] = [device, reference].map(|device| {
        let hidden = rng.hidden_mask(4, [9, 40], 0.1, device).into_data();
        let attention = rng.attention_mask(5, [3, 9, 9], 0.3, device).into_data();
        [values(hidden), values(attention)]
    });
    for (name, (found, expected)) in ["hidden", "attention"].iter().zip(found.iter().zip(&expected))
    {
        errors.add(name, found, expected);
    }
    errors
}
