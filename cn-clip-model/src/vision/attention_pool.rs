//! Attention pooling at the end of the ModifiedResNet (`cn_clip/clip/model.py`).

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::Tensor,
};

use crate::{
    attention::{attention, split_heads},
    init::{Init, Values},
};

/// Attention with the mean feature as its single query.
#[derive(Module, Debug)]
pub struct AttentionPool2d {
    /// `[1 + grid * grid, width]`, mean token first.
    pub positional_embedding: Param<Tensor<2>>,
    /// Key projection.
    pub k_proj: Linear,
    /// Query projection.
    pub q_proj: Linear,
    /// Value projection.
    pub v_proj: Linear,
    /// Output projection to the joint embedding.
    pub c_proj: Linear,
    heads: usize,
}

impl AttentionPool2d {
    pub(crate) fn init(
        grid: usize,
        width: usize,
        heads: usize,
        embed_dim: usize,
        init: &Init,
    ) -> Self {
        let std = Values::Normal((width as f64).powf(-0.5));
        let linear = |name: &str, output| init.at(name).linear(width, output, Some(std), None);
        Self {
            positional_embedding: init.param("positional_embedding", [grid * grid + 1, width], std),
            k_proj: linear("k_proj", width),
            q_proj: linear("q_proj", width),
            v_proj: linear("v_proj", width),
            c_proj: linear("c_proj", embed_dim),
            heads,
        }
    }

    /// `[batch, width, grid, grid]` to `[batch, embed_dim]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = x.flatten::<3>(2, 3).swap_dims(1, 2);
        let mean = x.clone().mean_dim(1);
        let position = self.positional_embedding.val().unsqueeze::<3>();
        let x = Tensor::cat(vec![mean, x], 1) + position;
        let query = self.q_proj.forward(x.clone().slice_dim(1, 0..1));
        let (key, value) = (self.k_proj.forward(x.clone()), self.v_proj.forward(x));
        let [query, key, value] = [query, key, value].map(|part| split_heads(part, self.heads));
        let pooled = attention(query, key, value, None, None).squeeze_dim::<2>(1);
        self.c_proj.forward(pooled)
    }
}
