//! Where in its tower a parameter lies, by its official key.

use std::collections::HashMap;

use burn::module::ParamId;
use cn_clip_model::{
    Clip,
    checkpoint::{ParamSpec, parameters},
};

use crate::step::{StepOptions, Training};

/// Which tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Image,
    Text,
}

/// Which part of a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Embeddings, or the stem of a ResNet.
    Input,
    /// A layer of a transformer, or a stage of a ResNet.
    Block(usize),
    /// What follows the blocks.
    Output,
}

/// `None` for the logit scale, which belongs to neither tower.
fn locate(key: &str) -> Option<(Side, Part)> {
    let number = |rest: &str| rest.split('.').next()?.parse::<usize>().ok();
    let block = |prefix: &str| key.strip_prefix(prefix).and_then(number).map(Part::Block);
    if key == "text_projection" {
        return Some((Side::Text, Part::Output));
    }
    if key.starts_with("bert.") {
        return Some((Side::Text, block("bert.encoder.layer.").unwrap_or(Part::Input)));
    }
    let rest = key.strip_prefix("visual.")?;
    let stage = rest.strip_prefix("layer").and_then(number).map(|n| n.saturating_sub(1));
    let output = ["ln_post.", "proj", "attnpool."].iter().any(|name| rest.starts_with(name));
    let part = block("visual.transformer.resblocks.").or(stage.map(Part::Block));
    Some((Side::Image, part.unwrap_or(if output { Part::Output } else { Part::Input })))
}

/// Blocks of each tower.
fn blocks(specs: &[ParamSpec]) -> HashMap<Side, usize> {
    let mut counts = HashMap::from([(Side::Image, 0), (Side::Text, 0)]);
    for (side, part) in specs.iter().filter_map(|spec| locate(&spec.key)) {
        if let (Part::Block(index), Some(count)) = (part, counts.get_mut(&side)) {
            *count = (*count).max(index + 1);
        }
    }
    counts
}

/// The parameters that are trained, in the order of the official model.
pub(crate) fn trained(model: &Clip, options: &StepOptions) -> Vec<ParamSpec> {
    let specs = parameters(model);
    let counts = blocks(&specs);
    let trains = |spec: &ParamSpec| {
        let Some((side, part)) = locate(&spec.key) else { return true };
        let training = match side {
            Side::Image => options.vision,
            Side::Text => options.text,
        };
        match training {
            Training::Whole => true,
            Training::Last(last) => part >= Part::Block(counts[&side].saturating_sub(last)),
            Training::Frozen => false,
        }
    };
    specs.into_iter().filter(|spec| !spec.buffer && trains(spec)).collect()
}

/// Factors of the learning rate: 1 for what follows the blocks, `decay` times less for each block
/// before (arXiv 2106.08254).
pub(crate) fn rate_factors(model: &Clip, decay: f64) -> HashMap<ParamId, f64> {
    let specs = parameters(model);
    let counts = blocks(&specs);
    let factor = |spec: &ParamSpec| {
        let (side, part) = locate(&spec.key)?;
        let below = match part {
            Part::Input => counts[&side] + 1,
            Part::Block(index) => counts[&side] - index,
            Part::Output => 0,
        };
        Some((spec.id, decay.powi(below as i32)))
    };
    specs.iter().filter_map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_located() {
        for (key, expected) in [
            ("logit_scale", None),
            ("text_projection", Some((Side::Text, Part::Output))),
            ("bert.embeddings.LayerNorm.weight", Some((Side::Text, Part::Input))),
            ("bert.encoder.layer.11.output.dense.bias", Some((Side::Text, Part::Block(11)))),
            ("visual.class_embedding", Some((Side::Image, Part::Input))),
            ("visual.conv1.weight", Some((Side::Image, Part::Input))),
            ("visual.ln_pre.bias", Some((Side::Image, Part::Input))),
            (
                "visual.transformer.resblocks.3.attn.in_proj_bias",
                Some((Side::Image, Part::Block(3))),
            ),
            ("visual.ln_post.bias", Some((Side::Image, Part::Output))),
            ("visual.proj", Some((Side::Image, Part::Output))),
            ("visual.layer1.0.conv1.weight", Some((Side::Image, Part::Block(0)))),
            ("visual.attnpool.c_proj.bias", Some((Side::Image, Part::Output))),
        ] {
            assert_eq!(locate(key), expected, "{key}");
        }
    }
}
