//! Attention by the operations of Burn; the kernels for the processor have their own.

use burn::tensor::{Tensor, activation::softmax, module, ops::AttentionModuleOptions};

use crate::precision::{as_type_of, in_fp32};

/// Scaled dot-product attention.
///
/// `query` is `[batch, heads, queries, head_width]`, `key` and `value` are
/// `[batch, heads, keys, head_width]`; `bias` is added to the scores and `dropout` multiplies the
/// probabilities (both broadcast to `[batch, heads, queries, keys]`). Returns
/// `[batch, queries, heads * head_width]`.
pub(crate) fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    dropout: Option<Tensor<4>>,
) -> Tensor<3> {
    let [batch, heads, queries, head_width] = query.dims();
    let bias = bias.map(|bias| as_type_of(bias, &query));
    let context = if dropout.is_none() && !query.device().is_autodiff() {
        module::attention(query, key, value, None, bias, AttentionModuleOptions::default())
    } else {
        let scale = 1.0 / (head_width as f64).sqrt();
        let scores = query.mul_scalar(scale).matmul(key.swap_dims(2, 3));
        let scores = match bias {
            Some(bias) => scores + bias,
            None => scores,
        };
        let probabilities = in_fp32(scores, |scores| softmax(scores, 3));
        let probabilities = match dropout {
            Some(mask) => {
                let mask = as_type_of(mask, &probabilities);
                probabilities * mask
            }
            None => probabilities,
        };
        probabilities.matmul(value)
    };
    context.swap_dims(1, 2).reshape([batch, queries, heads * head_width])
}

/// Splits `[batch, tokens, heads * head_width]` into `[batch, heads, tokens, head_width]`.
pub(crate) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}
