//! The contrastive loss: differentiable for one's own loop, and with its gradient in closed form.
//!
//! For normalised features `I, T` (`[N, E]`) and `S = exp(t) I Tᵀ` the loss is
//! `1/(2N) Σᵢ (logsumexp(Sᵢ·) + logsumexp(S·ᵢ) - 2 Sᵢᵢ)` (arXiv 2103.00020). With `P` and `Q` the
//! softmax of `S` over rows and over columns its gradient is
//! `dI = exp(t)/(2N) (P + Q - 2·1) T`, likewise `dT`, and `dt = Σᵢ Iᵢ·dIᵢ`.
//! The columns are walked in tiles with an online log-sum-exp, so memory is
//! `O(local · tile)` and never `O(N²)` (the idea of Inf-CL, arXiv 2410.17243).

use burn::tensor::{Int, Tensor, activation::log_softmax};
use cn_clip_model::normalize;

/// Similarities held at a time.
const TILE_CELLS: usize = 1 << 24;

/// Columns of the similarity matrix to hold at a time beside this many rows: few enough for little
/// memory, enough for fast matrix products.
pub fn tile_columns(rows: usize) -> usize {
    (TILE_CELLS / rows.max(1)).clamp(256, 4096)
}

/// The symmetric cross entropy of un-normalised features, by autodiff.
///
/// `image_features`, `text_features`: `[N, E]`, pairs in the same rows; `logit_scale`: `[1]`, the
/// logarithm of the factor. Returns `[1]`.
pub fn contrastive_loss(
    image_features: Tensor<2>,
    text_features: Tensor<2>,
    logit_scale: Tensor<1>,
) -> Tensor<1> {
    let [count, _] = image_features.dims();
    let (image, text) = (normalize(image_features), normalize(text_features));
    let logits = image.matmul(text.transpose()) * logit_scale.exp().unsqueeze::<2>();
    let labels = Tensor::<1, Int>::arange(0..count as i64, &logits.device()).unsqueeze_dim::<2>(1);
    let diagonal = |logits: Tensor<2>| log_softmax(logits, 1).gather(1, labels.clone()).mean();
    (diagonal(logits.clone()) + diagonal(logits.transpose())) * -0.5
}

/// Features of all ranks, in rank order, and which of them are this rank's own.
#[derive(Debug, Clone)]
pub struct Gathered {
    /// Normalised image features of all ranks: `[N, E]`.
    pub image: Tensor<2>,
    /// Normalised text features of all ranks: `[N, E]`.
    pub text: Tensor<2>,
    /// First row of this rank.
    pub first: usize,
    /// Rows of this rank.
    pub count: usize,
}

/// Log-sum-exps of the rows of this rank, before they are exchanged.
#[derive(Debug, Clone)]
pub struct LocalStatistics {
    /// `logsumexp` over all texts of each own picture: `[n, 1]`.
    pub image_rows: Tensor<2>,
    /// `logsumexp` over all pictures of each own text: `[n, 1]`.
    pub text_rows: Tensor<2>,
    /// Own diagonal of the similarity matrix: `[n, 1]`.
    pub diagonal: Tensor<2>,
    /// Own pictures whose own text is the best.
    pub image_correct: usize,
    /// Own texts whose own picture is the best.
    pub text_correct: usize,
}

/// Gradient of the global loss by this rank's normalised features.
#[derive(Debug, Clone)]
pub struct LocalGradient {
    /// `[n, E]`.
    pub image: Tensor<2>,
    /// `[n, E]`.
    pub text: Tensor<2>,
    /// This rank's share of the gradient by the logarithm of the scale: `[1]`; sum over ranks.
    pub logit_scale: Tensor<1>,
}

impl Gathered {
    /// One rank that holds everything.
    pub fn local(image: Tensor<2>, text: Tensor<2>) -> Self {
        let count = image.dims()[0];
        Self { image, text, first: 0, count }
    }

    /// Image features of this rank: `[n, E]`.
    pub fn own_image(&self) -> Tensor<2> {
        self.own(&self.image)
    }

    fn own(&self, features: &Tensor<2>) -> Tensor<2> {
        features.clone().slice_dim(0, self.first..self.first + self.count)
    }

    fn tiles(&self, tile: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let total = self.image.dims()[0];
        (0..total).step_by(tile).map(move |start| start..(start + tile).min(total))
    }

    /// Rows of the similarity matrix that belong to this rank. `scale` is `exp` of the logit
    /// scale, `tile` the columns held at a time.
    pub fn statistics(&self, scale: f32, tile: usize) -> LocalStatistics {
        let (image, text) = (self.own(&self.image), self.own(&self.text));
        let diagonal = (image.clone() * text.clone()).sum_dim(1) * scale;
        let (image_rows, image_correct) = self.log_sum_exp(&image, &self.text, scale, tile);
        let (text_rows, text_correct) = self.log_sum_exp(&text, &self.image, scale, tile);
        LocalStatistics { image_rows, text_rows, diagonal, image_correct, text_correct }
    }

    /// Online log-sum-exp of `scale * rows @ columnsᵀ`, and how many rows are best at their own
    /// column.
    fn log_sum_exp(
        &self,
        rows: &Tensor<2>,
        columns: &Tensor<2>,
        scale: f32,
        tile: usize,
    ) -> (Tensor<2>, usize) {
        let mut state: Option<(Tensor<2>, Tensor<2>, Tensor<2, Int>)> = None;
        for range in self.tiles(tile) {
            let start = range.start as i64;
            let block = columns.clone().slice_dim(0, range);
            let logits = rows.clone().matmul(block.transpose()) * scale;
            let (best, index) = logits.clone().max_dim_with_indices(1);
            let index = index + start;
            state = Some(match state {
                None => {
                    let sum = (logits - best.clone()).exp().sum_dim(1);
                    (best, sum, index)
                }
                Some((old, sum, old_index)) => {
                    let index = old_index.mask_where(best.clone().greater(old.clone()), index);
                    let best = best.max_pair(old.clone());
                    let sum =
                        sum * (old - best.clone()).exp() + (logits - best.clone()).exp().sum_dim(1);
                    (best, sum, index)
                }
            });
        }
        let Some((best, sum, index)) = state else {
            return (Tensor::zeros([0, 1], &rows.device()), 0);
        };
        let own = self.first as i64..(self.first + self.count) as i64;
        let own = Tensor::<1, Int>::arange(own, &index.device()).unsqueeze_dim::<2>(1);
        let correct: i64 = index.equal(own).int().sum().into_scalar::<i64>();
        (best + sum.log(), correct as usize)
    }

    /// Gradient of the mean loss over all `N` pairs by this rank's features, given the
    /// log-sum-exps of all ranks in rank order (`[N, 1]` each).
    pub fn gradient(
        &self,
        local: &LocalStatistics,
        all_image_rows: &Tensor<2>,
        all_text_rows: &Tensor<2>,
        scale: f32,
        tile: usize,
    ) -> LocalGradient {
        let (image, text) = (self.own(&self.image), self.own(&self.text));
        let factor = f64::from(scale) / (2 * self.image.dims()[0]) as f64;
        let side = |rows: &Tensor<2>, own: &Tensor<2>, columns: &Tensor<2>, others: &Tensor<2>| {
            let mut sum = Tensor::<2>::zeros(rows.dims(), &rows.device());
            for range in self.tiles(tile) {
                let block = columns.clone().slice_dim(0, range.clone());
                let logits = rows.clone().matmul(block.clone().transpose()) * scale;
                let other = others.clone().slice_dim(0, range).transpose();
                let softmax = (logits.clone() - own.clone()).exp() + (logits - other).exp();
                sum = sum + softmax.matmul(block);
            }
            sum
        };
        let image_gradient = side(&image, &local.image_rows, &self.text, all_text_rows);
        let text_gradient = side(&text, &local.text_rows, &self.image, all_image_rows);
        let image_gradient = (image_gradient - text.clone() * 2.0) * factor;
        let text_gradient = (text_gradient - image.clone() * 2.0) * factor;
        let logit_scale = (image * image_gradient.clone()).sum();
        LocalGradient { image: image_gradient, text: text_gradient, logit_scale }
    }
}

impl LocalStatistics {
    /// Sum over this rank's pairs of the two cross entropies; the loss is the sum over all ranks
    /// divided by `2N`.
    pub fn loss_sum(&self) -> f32 {
        let sum = self.image_rows.clone() + self.text_rows.clone() - self.diagonal.clone() * 2.0;
        sum.sum().into_scalar()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData};

    use super::*;

    fn features(count: usize, seed: u64) -> Tensor<2> {
        features_of(count, 24, seed)
    }

    fn features_of(count: usize, width: usize, seed: u64) -> Tensor<2> {
        // A fixed sequence: tests run in parallel and share the device's generator.
        let mut state = seed;
        let values: Vec<f32> = (0..count * width)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect();
        Tensor::from_data(TensorData::new(values, [count, width]), &Device::default())
    }

    fn close<const D: usize>(a: Tensor<D>, b: Tensor<D>, tolerance: f32) {
        let scale: f32 = b.clone().abs().max().into_scalar();
        let error: f32 = (a - b).abs().max().into_scalar();
        assert!(error <= tolerance * scale, "{error} of {scale}");
    }

    #[test]
    fn closed_form_equals_autodiff_for_any_tile_and_number_of_ranks() {
        let (image, text, log_scale) = (features(37, 1), features(37, 2), 2.66f32);
        let leaf = |x: &Tensor<2>| Tensor::<2>::from_inner(x.clone()).require_grad();
        let (a, b) = (leaf(&normalize(image.clone())), leaf(&normalize(text.clone())));
        let t = Tensor::<1>::from_inner(Tensor::from_floats([log_scale], &Device::default()))
            .require_grad();
        let logits = a.clone().matmul(b.clone().transpose()) * t.clone().exp().unsqueeze::<2>();
        let labels = Tensor::<1, Int>::arange(0..37, &logits.device()).unsqueeze_dim::<2>(1);
        let term = |l: Tensor<2>| log_softmax(l, 1).gather(1, labels.clone()).mean();
        let loss = (term(logits.clone()) + term(logits.transpose())) * -0.5;
        let grads = loss.backward();
        let (da, db) = (a.grad(&grads).unwrap(), b.grad(&grads).unwrap());
        let dt = t.grad(&grads).unwrap();

        let (image, text) = (normalize(image), normalize(text));
        let scale = log_scale.exp();
        for (ranks, tile) in [(1, 64), (1, 8), (2, 5)] {
            let cuts: Vec<usize> = (0..=ranks).map(|rank| 37 * rank / ranks).collect();
            let views: Vec<Gathered> = cuts
                .windows(2)
                .map(|cut| Gathered {
                    image: image.clone(),
                    text: text.clone(),
                    first: cut[0],
                    count: cut[1] - cut[0],
                })
                .collect();
            let local: Vec<LocalStatistics> =
                views.iter().map(|view| view.statistics(scale, tile)).collect();
            let join = |part: fn(&LocalStatistics) -> Tensor<2>| {
                Tensor::cat(local.iter().map(part).collect(), 0)
            };
            let image_rows = join(|l| l.image_rows.clone());
            let text_rows = join(|l| l.text_rows.clone());
            let got: f32 = local.iter().map(LocalStatistics::loss_sum).sum::<f32>() / 74.0;
            let expected: f32 = loss.clone().into_scalar();
            assert!((got - expected).abs() < 1e-5 * expected);
            let parts: Vec<LocalGradient> = views
                .iter()
                .zip(&local)
                .map(|(view, l)| view.gradient(l, &image_rows, &text_rows, scale, tile))
                .collect();
            close(
                Tensor::cat(parts.iter().map(|p| p.image.clone()).collect(), 0),
                da.clone(),
                1e-5,
            );
            close(Tensor::cat(parts.iter().map(|p| p.text.clone()).collect(), 0), db.clone(), 1e-5);
            let sum = parts.into_iter().map(|p| p.logit_scale).reduce(|x, y| x + y).unwrap();
            close(sum, dt.clone(), 1e-4);
        }
    }

    #[test]
    fn tiles_of_two_thousand_pairs_give_the_gradient_of_the_full_matrix() {
        let (image, text) = (features_of(2048, 512, 1), features_of(2048, 512, 2));
        // Near their pairs, as in a trained model.
        let text = normalize(image.clone() * 0.2 + text);
        let image = normalize(image);
        let leaf = |x: &Tensor<2>| Tensor::<2>::from_inner(x.clone()).require_grad();
        let (a, b, log_scale) = (leaf(&image), leaf(&text), 4.0f32);
        let t = Tensor::<1>::from_inner(Tensor::from_floats([log_scale], &Device::default()));
        let t = t.require_grad();
        let loss = contrastive_loss(a.clone(), b.clone(), t.clone());
        let grads = loss.backward();
        // That loss normalises what it is given: only the part across the features remains.
        let across = |gradient: Tensor<2>, features: &Tensor<2>| {
            let along = (gradient.clone() * features.clone()).sum_dim(1);
            gradient - features.clone() * along
        };
        let view = Gathered::local(image.clone(), text.clone());
        let tile = 300;
        let local = view.statistics(log_scale.exp(), tile);
        let (rows, columns) = (local.image_rows.clone(), local.text_rows.clone());
        let gradient = view.gradient(&local, &rows, &columns, log_scale.exp(), tile);
        close(across(gradient.image, &image), a.grad(&grads).unwrap(), 1e-4);
        close(across(gradient.text, &text), b.grad(&grads).unwrap(), 1e-4);
        close(gradient.logit_scale, t.grad(&grads).unwrap(), 1e-4);
    }

    #[test]
    fn accuracy_counts_the_diagonal() {
        let image = normalize(features(20, 3));
        let view = Gathered::local(image.clone(), image.clone());
        let statistics = view.statistics(10.0, 6);
        assert_eq!((statistics.image_correct, statistics.text_correct), (20, 20));
        let other = normalize(Tensor::random([20, 24], Distribution::Default, &Device::default()));
        let view = Gathered::local(image, other);
        assert!(view.statistics(10.0, 6).image_correct < 20);
    }

    #[test]
    fn the_autodiff_loss_is_that_of_the_closed_form() {
        let (image, text) = (features(9, 5), features(9, 6));
        let log_scale = Tensor::from_floats([3.0], &Device::default());
        let loss: f32 = contrastive_loss(image.clone(), text.clone(), log_scale).into_scalar();
        let view = Gathered::local(normalize(image), normalize(text));
        let sum = view.statistics(3f32.exp(), 4).loss_sum();
        assert!((sum / 18.0 - loss).abs() < 1e-5);
    }
}
