//! BERT encoder (arXiv 1810.04805; `cn_clip/clip/modeling_bert.py`), without pooler.

use burn::{
    module::Module,
    nn::{Embedding, LayerNorm, Linear},
    tensor::{
        Bool, Device, Int, Tensor,
        activation::{gelu_approximate, relu, silu},
    },
};

use crate::{
    attention::{attention, split_heads},
    clip::Pass,
    config::{TextActivation, TextConfig},
    host::{self, Prepared},
    init::{Init, Values},
    precision::{as_type_of, layer_norm},
    workarounds::gelu,
};

pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-12;
/// Added to the attention scores of padding.
const MASKED: f64 = -10000.0;
/// Dropout sites of a layer: attention probabilities, attention output, feed-forward output.
const SITES_PER_LAYER: u32 = 3;

/// Word, position and token-type embeddings.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// `[vocab_size, hidden]`.
    pub word_embeddings: Embedding,
    /// `[max_positions, hidden]`.
    pub position_embeddings: Embedding,
    /// `[type_vocab_size, hidden]`; only row 0 is used.
    pub token_type_embeddings: Embedding,
    /// Norm of the sum.
    pub layer_norm: LayerNorm,
}

impl Embeddings {
    /// Token ids `[batch, tokens]` to `[batch, tokens, hidden]`, before dropout.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let length = tokens.dims()[1];
        let position = self.position_embeddings.weight.val().slice_dim(0, 0..length);
        let kind = self.token_type_embeddings.weight.val().slice_dim(0, 0..1);
        let words = self.word_embeddings.forward(tokens);
        layer_norm(&self.layer_norm, words + (position + kind).unsqueeze::<3>())
    }
}

/// Query, key and value projections.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query projection.
    pub query: Linear,
    /// Key projection.
    pub key: Linear,
    /// Value projection.
    pub value: Linear,
}

/// Projection, dropout and norm of the sum with the residual.
#[derive(Module, Debug)]
pub struct Output {
    /// Projection back to the hidden width.
    pub dense: Linear,
    /// Norm of the sum.
    pub layer_norm: LayerNorm,
}

impl Output {
    fn forward(&self, x: Tensor<3>, residual: Tensor<3>, mask: Option<Tensor<3>>) -> Tensor<3> {
        let x = drop_out(self.dense.forward(x), mask);
        layer_norm(&self.layer_norm, x + residual)
    }
}

fn drop_out<const D: usize>(x: Tensor<D>, mask: Option<Tensor<D>>) -> Tensor<D> {
    match mask {
        Some(mask) => {
            let mask = as_type_of(mask, &x);
            x * mask
        }
        None => x,
    }
}

/// Attention part of a layer.
#[derive(Module, Debug)]
pub struct Attention {
    /// Projections; official name `self`.
    pub self_attention: SelfAttention,
    /// Output part.
    pub output: Output,
}

/// First half of the feed-forward part.
#[derive(Module, Debug)]
pub struct Intermediate {
    /// `[hidden, intermediate]`.
    pub dense: Linear,
}

/// Post-norm transformer layer.
#[derive(Module, Debug)]
pub struct Layer {
    /// Attention part.
    pub attention: Attention,
    /// Feed-forward part.
    pub intermediate: Intermediate,
    /// Output of the feed-forward part.
    pub output: Output,
}

/// The stack of layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// Layers in order.
    pub layer: Vec<Layer>,
}

/// BERT encoder: token ids to hidden states.
#[derive(Module, Debug)]
pub struct Bert {
    /// Embeddings.
    pub embeddings: Embeddings,
    /// Layers.
    pub encoder: Encoder,
    #[module(skip)]
    config: BertOptions,
    #[module(skip)]
    pub(crate) prepared: Prepared,
}

/// Where texts of a batch are padded.
#[derive(Debug, Clone)]
pub struct Padding {
    /// Added to attention scores, `[batch, 1, 1, tokens]`: -10000 at padding.
    bias: Tensor<4>,
    /// Tokens of each text, where all padding is at the end and kernels leave it out.
    lengths: Option<Vec<usize>>,
}

/// What the forward pass needs of the configuration.
#[derive(Debug, Clone)]
struct BertOptions {
    heads: usize,
    activation: TextActivation,
    hidden_dropout: f64,
    attention_dropout: f64,
}

/// First dropout site of a layer; the embeddings have site 0.
fn first_site(layer: usize) -> u32 {
    1 + layer as u32 * SITES_PER_LAYER
}

impl Bert {
    pub(crate) fn init(config: &TextConfig, init: &Init) -> Self {
        let (hidden, std) = (config.hidden_size, config.initializer_range);
        let linear = |init: Init, input, output| {
            init.linear(input, output, Some(Values::Normal(std)), Some(Values::Constant(0.0)))
        };
        let norm = || init.layer_norm(hidden, LAYER_NORM_EPSILON);
        let layer = |index: usize| {
            let init = init.at("encoder").at("layer").at(index);
            let attention = init.at("attention");
            let own = attention.at("self");
            let output = |init: Init, input| Output {
                dense: linear(init.at("dense"), input, hidden),
                layer_norm: norm(),
            };
            Layer {
                attention: Attention {
                    self_attention: SelfAttention {
                        query: linear(own.at("query"), hidden, hidden),
                        key: linear(own.at("key"), hidden, hidden),
                        value: linear(own.at("value"), hidden, hidden),
                    },
                    output: output(attention.at("output"), hidden),
                },
                intermediate: Intermediate {
                    dense: linear(
                        init.at("intermediate").at("dense"),
                        hidden,
                        config.intermediate_size,
                    ),
                },
                output: output(init.at("output"), config.intermediate_size),
            }
        };
        let table = |name: &str, rows| init.at("embeddings").at(name).embedding(rows, hidden, std);
        Self {
            embeddings: Embeddings {
                word_embeddings: table("word_embeddings", config.vocab_size),
                position_embeddings: table("position_embeddings", config.max_positions),
                token_type_embeddings: table("token_type_embeddings", config.type_vocab_size),
                layer_norm: norm(),
            },
            encoder: Encoder { layer: (0..config.layers).map(layer).collect() },
            config: BertOptions {
                heads: config.heads,
                activation: config.activation,
                hidden_dropout: config.hidden_dropout,
                attention_dropout: config.attention_dropout,
            },
            prepared: Prepared::default(),
        }
    }

    /// Padding (id 0) of token ids `[batch, tokens]`.
    pub fn padding(tokens: Tensor<2, Int>, device: &Device) -> Padding {
        let [batch, length] = tokens.dims();
        let padding: Tensor<2, Bool> = tokens.clone().equal_scalar(0);
        let bias = Tensor::zeros([batch, 1, 1, length], device)
            .mask_fill(padding.reshape([batch, 1, 1, length]), MASKED);
        let lengths = host::lengths(tokens, &bias);
        Padding { bias, lengths }
    }

    /// Input of the first layer: embeddings after dropout.
    pub fn embed(&self, tokens: Tensor<2, Int>, pass: Pass<'_>) -> Tensor<3> {
        let x = self.embeddings.forward(tokens);
        let mask = self.hidden_mask(pass, 0, &x);
        drop_out(x, mask)
    }

    /// Layer `index`, `[batch, tokens, hidden]` to the same shape, in which padding holds anything;
    /// with `first_only`, the first token of it, `[batch, 1, hidden]`, at the cost of one.
    pub fn layer(
        &self,
        index: usize,
        x: Tensor<3>,
        padding: &Padding,
        pass: Pass<'_>,
        first_only: bool,
    ) -> Tensor<3> {
        self.layer_by_kernels(index, &x, padding, pass, first_only)
            .unwrap_or_else(|| self.layer_by_operations(index, x, padding, pass, first_only))
    }

    fn layer_by_kernels(
        &self,
        index: usize,
        x: &Tensor<3>,
        padding: &Padding,
        pass: Pass<'_>,
        first_only: bool,
    ) -> Option<Tensor<3>> {
        let lengths = padding.lengths.as_ref()?;
        if self.config.activation != TextActivation::Gelu {
            return None;
        }
        let dropout = |number: u32, probability: f64| {
            let rng = pass.rng().filter(|_| probability > 0.0)?;
            Some(rng.dropout(first_site(index) + number, probability))
        };
        let dropouts = [
            dropout(0, self.config.attention_dropout),
            dropout(1, self.config.hidden_dropout),
            dropout(2, self.config.hidden_dropout),
        ];
        let (layer, heads) = (&self.encoder.layer[index], self.config.heads);
        host::text_layer(layer, heads, x, lengths, dropouts, first_only)
    }

    fn layer_by_operations(
        &self,
        index: usize,
        x: Tensor<3>,
        padding: &Padding,
        pass: Pass<'_>,
        first_only: bool,
    ) -> Tensor<3> {
        let layer = &self.encoder.layer[index];
        let site = first_site(index);
        let own = &layer.attention.self_attention;
        let residual = if first_only { x.clone().slice_dim(1, 0..1) } else { x.clone() };
        let queries = own.query.forward(residual.clone());
        let [query, key, value] = [queries, own.key.forward(x.clone()), own.value.forward(x)]
            .map(|part| split_heads(part, self.config.heads));
        let mask = self.attention_mask(pass, site, &query, &key);
        let context = attention(query, key, value, Some(padding.bias.clone()), mask);
        let mask = self.hidden_mask(pass, site + 1, &residual);
        let x = layer.attention.output.forward(context, residual, mask);
        let inner = layer.intermediate.dense.forward(x.clone());
        let inner = match self.config.activation {
            TextActivation::Gelu => gelu(inner),
            TextActivation::GeluNew => gelu_approximate(inner),
            TextActivation::Relu => relu(inner),
            TextActivation::Swish => silu(inner),
        };
        let mask = self.hidden_mask(pass, site + 2, &x);
        layer.output.forward(inner, x, mask)
    }

    /// Token ids `[batch, tokens]` to the hidden state of the first token, `[batch, hidden]`;
    /// without gradients on the processor by fused kernels, for which a copy of the weights is kept
    /// until [`Clip::release_prepared`](crate::Clip::release_prepared).
    pub fn forward(&self, tokens: Tensor<2, Int>, pass: Pass<'_>) -> Tensor<2> {
        if let (Pass::Eval, TextActivation::Gelu) = (pass, self.config.activation) {
            let (layers, heads) = (&self.encoder.layer, self.config.heads);
            let first = host::text(&self.prepared, &self.embeddings, layers, heads, &tokens);
            if let Some(first) = first {
                return first.squeeze_dim(1);
            }
        }
        let device = self.embeddings.word_embeddings.weight.val().device();
        let padding = Self::padding(tokens.clone(), &device);
        let mut x = self.embed(tokens, pass);
        let depth = self.encoder.layer.len();
        for index in 0..depth {
            x = self.layer(index, x, &padding, pass, index + 1 == depth);
        }
        x.slice_dim(1, 0..1).squeeze_dim(1)
    }

    fn hidden_mask(&self, pass: Pass<'_>, site: u32, x: &Tensor<3>) -> Option<Tensor<3>> {
        let [_, positions, width] = x.dims();
        let probability = self.config.hidden_dropout;
        let rng = pass.rng().filter(|_| probability > 0.0)?;
        Some(rng.hidden_mask(site, [positions, width], probability, &x.device()))
    }

    fn attention_mask(
        &self,
        pass: Pass<'_>,
        site: u32,
        query: &Tensor<4>,
        key: &Tensor<4>,
    ) -> Option<Tensor<4>> {
        let ([_, heads, queries, _], [_, _, keys, _]) = (query.dims(), key.dims());
        let probability = self.config.attention_dropout;
        let rng = pass.rng().filter(|_| probability > 0.0)?;
        Some(rng.attention_mask(site, [heads, queries, keys], probability, &query.device()))
    }
}
