//! Floating-point operations that a model asks for, two for each multiply-add of a matrix product.
//!
//! What lies between the products, and what checkpointing computes again, is not counted: divided
//! by the time and by the peak of the device this is the model FLOP utilisation (arXiv 2204.02311).

use cn_clip_model::{ClipConfig, TextConfig, VisionConfig, config::VisionLayers};

/// Operations of a forward pass of the image tower for one picture, of which FLIP keeps a share of
/// `1 - mask_ratio` of the patches. None for a ResNet.
pub fn image(config: &VisionConfig, mask_ratio: f64) -> Option<f64> {
    let VisionLayers::Transformer(depth) = config.layers else { return None };
    let patch = config.patch_size? as f64;
    let (patches, tokens, width) = sizes(config, mask_ratio);
    let embedding = 2.0 * patches * 3.0 * patch * patch * width;
    let block = block(tokens, width, 4.0 * width);
    Some(embedding + depth as f64 * block + 2.0 * width * config.embed_dim as f64)
}

/// Operations that features need, without FLIP: the last block is there for its class token only,
/// whose query, multiplied by the projection to keys, each head compares with the tokens themselves,
/// and whose context is the projection to values of a mean of them.
pub fn image_features(config: &VisionConfig) -> Option<f64> {
    let (_, tokens, width) = sizes(config, 0.0);
    let heads = width / config.head_width as f64;
    let last = block(1.0, width, 4.0 * width) + 2.0 * 2.0 * width * (heads * tokens - 1.0);
    Some(image(config, 0.0)? - block(tokens, width, 4.0 * width) + last)
}

/// Patches, tokens after FLIP, and width.
fn sizes(config: &VisionConfig, mask_ratio: f64) -> (f64, f64, f64) {
    let patches = (config.grid() * config.grid()) as f64;
    (patches, (patches * (1.0 - mask_ratio)).floor() + 1.0, config.width as f64)
}

/// Operations of a forward pass of the text tower for one text of `tokens` tokens.
pub fn text(config: &TextConfig, embed_dim: usize, tokens: usize) -> f64 {
    let hidden = config.hidden_size as f64;
    let block = block(tokens as f64, hidden, config.intermediate_size as f64);
    config.layers as f64 * block + 2.0 * hidden * embed_dim as f64
}

/// Operations of a training step for one pair: a backward pass is two forward passes. The loss is
/// left out.
pub fn train(config: &ClipConfig, mask_ratio: f64, tokens: usize) -> Option<f64> {
    let embed_dim = config.vision.embed_dim;
    Some(3.0 * (image(&config.vision, mask_ratio)? + text(&config.text, embed_dim, tokens)))
}

/// Queries, keys, values and output; scores and context; the two layers of the MLP.
fn block(tokens: f64, width: f64, inner: f64) -> f64 {
    let projections = 4.0 * 2.0 * tokens * width * width;
    let attention = 2.0 * 2.0 * tokens * tokens * width;
    let mlp = 2.0 * 2.0 * tokens * width * inner;
    projections + attention + mlp
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations of matrix products of these sizes, rows by inner by columns.
    fn products(sizes: &[(usize, usize, usize)]) -> f64 {
        sizes.iter().map(|(rows, inner, columns)| (2 * rows * inner * columns) as f64).sum()
    }

    #[test]
    fn a_small_tower_has_the_operations_of_its_products() {
        let config = VisionConfig {
            embed_dim: 6,
            image_resolution: 12,
            layers: VisionLayers::Transformer(2),
            width: 8,
            patch_size: Some(3),
            head_width: 4,
        };
        // 16 patches of 27 values; 17 tokens, or 9 with half of the patches; two heads of 4.
        for (mask_ratio, tokens) in [(0.0, 17), (0.5, 9)] {
            let block = [
                (tokens, 8, 8),
                (tokens, 8, 8),
                (tokens, 8, 8),
                (2 * tokens, 4, tokens),
                (2 * tokens, tokens, 4),
                (tokens, 8, 8),
                (tokens, 8, 32),
                (tokens, 32, 8),
            ];
            let expected = products(&[(16, 27, 8), (1, 8, 6)]) + 2.0 * products(&block);
            assert_eq!(image(&config, mask_ratio), Some(expected));
            if mask_ratio == 0.0 {
                let attention = [(1, 8, 8), (2, 4, 8), (2, 8, tokens), (2, tokens, 8), (2, 8, 4)];
                let rest = [(1, 8, 8), (1, 8, 32), (1, 32, 8)];
                let last = products(&attention) + products(&rest);
                let found = image_features(&config).unwrap();
                assert!((found - (expected - products(&block) + last)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_official_towers_have_their_published_operations() {
        let config = ClipConfig::published("ViT-B-16").unwrap();
        // arXiv 2010.11929 and later tables: 17.6 G multiply-adds of ViT-B/16 at 224 pixels.
        let image = image(&config.vision, 0.0).unwrap();
        assert!((image / 2.0 - 17.56e9).abs() < 0.02e9, "{image}");
        // BERT base: 85.0 M weights in its layers, 52 tokens, and attention between them.
        let text = text(&config.text, 512, 52);
        let expected = 2.0 * 52.0 * 84.9e6 + 12.0 * 4.0 * 52.0 * 52.0 * 768.0;
        assert!((text / expected - 1.0).abs() < 2e-3, "{text} {expected}");
        assert_eq!(train(&config, 0.0, 52), Some(3.0 * (image + text)));
        let resnet = ClipConfig::published("RN50").unwrap();
        assert_eq!(train(&resnet, 0.0, 52), None);
    }
}
