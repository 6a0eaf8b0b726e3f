//! Patches of pictures to the input of the first layer of a ViT.

use super::{
    math::{Norm, layer_norm},
    norm::each_row,
    packed::Packed,
    product::rows,
};

/// Patch embedding, class token, positions and the norm behind them.
#[derive(Debug)]
pub(super) struct Patches {
    /// `[3 * side * side, width]`.
    pub weight: Packed,
    /// The class token with its position: `[width]`.
    pub class: Vec<f32>,
    /// Of the patches: `[grid * grid, width]`.
    pub positions: Vec<f32>,
    pub norm: Norm,
    /// Pixels of a patch's side.
    pub side: usize,
    /// Patches of a picture's side.
    pub grid: usize,
}

impl Patches {
    /// Tokens of pictures of `resolution` pixels a side, `[batch, 3, resolution, resolution]`:
    /// `[batch, 1 + grid * grid, width]`.
    pub fn embed(&self, pixels: &[f32], resolution: usize) -> Vec<f32> {
        let (width, side, grid) = (self.weight.columns, self.side, self.grid);
        let (patches, channel) = (grid * grid, resolution * resolution);
        let batch = pixels.len() / (3 * channel);
        let embedded = rows(
            batch * patches,
            &self.weight,
            #[inline(always)]
            |index, out| {
                let (picture, patch) = (index / patches, index % patches);
                let first =
                    picture * 3 * channel + patch / grid * side * resolution + patch % grid * side;
                for (line, out) in out.chunks_exact_mut(side).enumerate() {
                    let line = first + line / side * channel + line % side * resolution;
                    out.copy_from_slice(&pixels[line..][..side]);
                }
            },
            #[inline(always)]
            |index, first, sums, out| {
                let positions = &self.positions[index % patches * width + first..][..sums.len()];
                let values = sums.iter().zip(positions);
                out.iter_mut().zip(values).for_each(|(out, (sum, position))| *out = sum + position);
            },
        );
        let mut tokens = vec![0.0; batch * (patches + 1) * width];
        each_row(
            &mut tokens,
            width,
            #[inline(always)]
            |index, out| {
                let (picture, token) = (index / (patches + 1), index % (patches + 1));
                let row = match token {
                    0 => &self.class[..],
                    _ => &embedded[(picture * patches + token - 1) * width..][..width],
                };
                layer_norm(row, &self.norm, out);
            },
        );
        tokens
    }
}
