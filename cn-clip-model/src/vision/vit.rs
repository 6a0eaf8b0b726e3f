//! Vision transformer of CLIP (arXiv 2103.00020; `cn_clip/clip/model.py`).

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{Int, Tensor, activation::sigmoid, module::linear},
};

use crate::{
    attention::{attention, split_heads},
    host::{self, Prepared},
    init::{Init, Values},
    precision::{as_type_of, layer_norm},
};

pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Convolution with stride equal to kernel size and no bias, done as one matrix product.
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[width, 3, patch, patch]`.
    pub weight: Param<Tensor<4>>,
}

impl PatchEmbedding {
    /// `[batch, 3, R, R]` to `[batch, grid * grid, width]`, patches in row-major order.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<3> {
        let weight = self.weight.val();
        let [width, channels, patch, _] = weight.dims();
        let [batch, _, height, _] = pixels.dims();
        let grid = height / patch;
        let patches = as_type_of(pixels, &weight)
            .reshape([batch, channels, grid, patch, grid, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * grid * grid, channels * patch * patch]);
        let weight = weight.reshape([width, channels * patch * patch]).transpose();
        patches.matmul(weight).reshape([batch, grid * grid, width])
    }
}

/// Self-attention with the packed input projection of `nn.MultiheadAttention`.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query, key and value projections: `[width, 3 * width]`.
    pub in_proj: Linear,
    /// Output projection.
    pub out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    #[cfg(feature = "flex")]
    pub(crate) fn heads(&self) -> usize {
        self.heads
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let packed = self
            .in_proj
            .forward(x)
            .reshape([batch, tokens, 3, self.heads, width / self.heads])
            .permute([2, 0, 3, 1, 4]);
        let part = |index: usize| packed.clone().slice_dim(0, index..index + 1).squeeze_dim::<4>(0);
        self.out_proj.forward(attention(part(0), part(1), part(2), None, None))
    }

    /// Output of the first token only: `[batch, 1, width]`.
    fn forward_first(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, _, width] = x.dims();
        let weight = self.in_proj.weight.val();
        let bias = self.in_proj.bias.as_ref().map(Param::val);
        let project = |x: Tensor<3>, from: usize, to: usize| {
            let bias = bias.clone().map(|bias| bias.slice_dim(0, from..to));
            linear(x, weight.clone().slice_dim(1, from..to), bias)
        };
        let query = project(x.clone().slice_dim(1, 0..1), 0, width);
        let packed = project(x, width, 3 * width);
        let key = split_heads(packed.clone().slice_dim(2, 0..width), self.heads);
        let value = split_heads(packed.slice_dim(2, width..2 * width), self.heads);
        let query = split_heads(query, self.heads);
        self.out_proj.forward(attention(query, key, value, None, None))
    }
}

/// Feed-forward part: `c_proj(QuickGELU(c_fc(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[width, 4 * width]`.
    pub c_fc: Linear,
    /// `[4 * width, width]`.
    pub c_proj: Linear,
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.c_proj.forward(quick_gelu(self.c_fc.forward(x)))
    }
}

/// `x * sigmoid(1.702 x)`.
fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * sigmoid(x.mul_scalar(1.702))
}

/// Pre-norm transformer block.
#[derive(Module, Debug)]
pub struct ResidualAttentionBlock {
    /// Self-attention.
    pub attn: SelfAttention,
    /// Norm before the attention.
    pub ln_1: LayerNorm,
    /// Feed-forward part.
    pub mlp: Mlp,
    /// Norm before the feed-forward part.
    pub ln_2: LayerNorm,
}

impl ResidualAttentionBlock {
    /// `[batch, tokens, width]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        host::vision_block(self, &x, false).unwrap_or_else(|| self.forward_by_operations(x))
    }

    /// The first token of [`forward`](Self::forward), `[batch, 1, width]`, at the cost of one.
    pub fn forward_first(&self, x: Tensor<3>) -> Tensor<3> {
        host::vision_block(self, &x, true).unwrap_or_else(|| self.forward_first_by_operations(x))
    }

    fn forward_by_operations(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(layer_norm(&self.ln_1, x));
        x.clone() + self.mlp.forward(layer_norm(&self.ln_2, x))
    }

    fn forward_first_by_operations(&self, x: Tensor<3>) -> Tensor<3> {
        let first = x.clone().slice_dim(1, 0..1);
        let x = first + self.attn.forward_first(layer_norm(&self.ln_1, x));
        x.clone() + self.mlp.forward(layer_norm(&self.ln_2, x))
    }
}

/// The stack of blocks.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Blocks in order.
    pub resblocks: Vec<ResidualAttentionBlock>,
}

/// Vision transformer: pixels to image features.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Class token: `[width]`.
    pub class_embedding: Param<Tensor<1>>,
    /// `[1 + grid * grid, width]`, class token first.
    pub positional_embedding: Param<Tensor<2>>,
    /// Output projection: `[width, embed_dim]`, no bias.
    pub proj: Param<Tensor<2>>,
    /// Patch embedding.
    pub conv1: PatchEmbedding,
    /// Norm before the blocks.
    pub ln_pre: LayerNorm,
    /// Blocks.
    pub transformer: Transformer,
    /// Norm after the blocks, on the class token.
    pub ln_post: LayerNorm,
    #[module(skip)]
    pub(crate) prepared: Prepared,
}

impl VisionTransformer {
    pub(crate) fn init(
        config: &crate::VisionConfig,
        patch: usize,
        depth: usize,
        init: &Init,
    ) -> Self {
        let (width, heads) = (config.width, config.heads());
        let scale = Values::Normal((width as f64).powf(-0.5));
        let fan_in = (3 * patch * patch) as f64;
        let block = |index: usize| {
            let init = init.at("transformer").at("resblocks").at(index);
            let (attn, mlp) = (init.at("attn"), init.at("mlp"));
            let xavier = Values::Uniform((6.0 / (4 * width) as f64).sqrt());
            let zero = Some(Values::Constant(0.0));
            ResidualAttentionBlock {
                attn: SelfAttention {
                    in_proj: attn.at("in_proj").linear(width, 3 * width, Some(xavier), zero),
                    out_proj: attn.at("out_proj").linear(width, width, None, zero),
                    heads,
                },
                ln_1: init.layer_norm(width, LAYER_NORM_EPSILON),
                mlp: Mlp {
                    c_fc: mlp.at("c_fc").linear(width, 4 * width, None, None),
                    c_proj: mlp.at("c_proj").linear(4 * width, width, None, None),
                },
                ln_2: init.layer_norm(width, LAYER_NORM_EPSILON),
            }
        };
        Self {
            class_embedding: init.param("class_embedding", [width], scale),
            positional_embedding: init.param(
                "positional_embedding",
                [config.grid() * config.grid() + 1, width],
                scale,
            ),
            proj: init.param("proj", [width, config.embed_dim], scale),
            conv1: PatchEmbedding {
                weight: init.at("conv1").param(
                    "weight",
                    [width, 3, patch, patch],
                    Values::Uniform(1.0 / fan_in.sqrt()),
                ),
            },
            ln_pre: init.layer_norm(width, LAYER_NORM_EPSILON),
            transformer: Transformer { resblocks: (0..depth).map(block).collect() },
            ln_post: init.layer_norm(width, LAYER_NORM_EPSILON),
            prepared: Prepared::default(),
        }
    }

    /// Number of patches of a picture.
    pub fn patches(&self) -> usize {
        self.positional_embedding.shape().dims::<2>()[0] - 1
    }

    /// Input of the first block: `[batch, tokens, width]`.
    ///
    /// `keep` (`[batch, kept]`) selects patches for FLIP after their positions were added; the
    /// class token always stays, first.
    pub fn embed(&self, pixels: Tensor<4>, keep: Option<Tensor<2, Int>>) -> Tensor<3> {
        let patches = self.conv1.forward(pixels);
        let [batch, _, width] = patches.dims();
        let position = self.positional_embedding.val();
        let tokens = position.dims()[0];
        let patches = patches + position.clone().slice_dim(0, 1..tokens).unsqueeze();
        let patches = match keep {
            Some(keep) => {
                let kept = keep.dims()[1];
                patches.gather(1, keep.unsqueeze_dim::<3>(2).expand([batch, kept, width]))
            }
            None => patches,
        };
        let class = self.class_embedding.val().unsqueeze::<2>() + position.slice_dim(0, 0..1);
        let class = class.unsqueeze::<3>().expand([batch, 1, width]);
        layer_norm(&self.ln_pre, Tensor::cat(vec![class, patches], 1))
    }

    /// Image features `[batch, embed_dim]` from the output of the last block.
    pub fn head(&self, x: Tensor<3>) -> Tensor<2> {
        let class = x.slice_dim(1, 0..1).squeeze_dim::<2>(1);
        layer_norm(&self.ln_post, class).matmul(self.proj.val())
    }

    /// `[batch, 3, R, R]` to un-normalised image features `[batch, embed_dim]`.
    pub fn forward(&self, pixels: Tensor<4>, keep: Option<Tensor<2, Int>>) -> Tensor<2> {
        self.head(self.blocks(self.embed(pixels, keep)))
    }

    /// [`forward`](Self::forward) of whole pictures without gradients: on the processor by fused
    /// kernels, for which a copy of the weights is kept until
    /// [`Clip::release_prepared`](crate::Clip::release_prepared).
    pub fn evaluate(&self, pixels: Tensor<4>) -> Tensor<2> {
        let class = host::vision(self, &pixels);
        self.head(class.unwrap_or_else(|| self.blocks(self.embed(pixels, None))))
    }

    /// The class token of the last block, `[batch, 1, width]`.
    fn blocks(&self, mut x: Tensor<3>) -> Tensor<3> {
        if let Some((last, blocks)) = self.transformer.resblocks.split_last() {
            for block in blocks {
                x = block.forward(x);
            }
            x = last.forward_first(x);
        }
        x
    }
}
