//! Distillation: the image features follow those of a teacher.
//!
//! The loss is `1 - mean cos(teacher, student)` over pictures, where the student's features are
//! stretched to the teacher's width by linear interpolation (`cn_clip/training/train.py`). It is a
//! sum over pictures, so micro-batches and ranks need nothing but their own.

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use cn_clip_model::{Clip, Pass, normalize};

use crate::step::MicroBatch;

/// Where the features to follow come from.
pub trait Teacher {
    /// Image features `[pictures, width]` of a micro-batch, without a graph; their lengths do not
    /// matter.
    fn features(&self, batch: &MicroBatch) -> Tensor<2>;

    /// Weight of the distillation loss beside the contrastive one.
    fn weight(&self) -> f64;
}

/// The image tower of a model as a teacher.
#[derive(Debug)]
pub struct ImageTeacher {
    model: Clip,
    weight: f64,
}

impl ImageTeacher {
    /// A teacher for pictures of the resolution of `model`.
    pub fn new(model: &Clip, weight: f64) -> Self {
        Self { model: model.valid(), weight }
    }
}

impl Teacher for ImageTeacher {
    fn features(&self, batch: &MicroBatch) -> Tensor<2> {
        let pixels = batch.pixels(&self.model.device());
        self.model.encode_image(pixels, None, Pass::Eval)
    }

    fn weight(&self) -> f64 {
        self.weight
    }
}

/// Distillation loss of some pictures.
pub struct Distillation {
    /// Sum of `1 - cos`.
    pub loss_sum: f32,
    /// Gradient of that sum by the student's normalised features.
    pub gradient: Tensor<2>,
}

/// The loss of normalised student features `[n, student]` against teacher features `[n, teacher]`.
pub fn distill(student: &Tensor<2>, teacher: Tensor<2>) -> Distillation {
    let ([count, from], [_, to]) = (student.dims(), teacher.dims());
    let stretch = interpolation(from, to, &student.device());
    let stretched = student.clone().matmul(stretch.clone());
    let length = stretched.clone().square().sum_dim(1).sqrt();
    let (direction, teacher) = (stretched / length.clone(), normalize(teacher));
    let cosine = (direction.clone() * teacher.clone()).sum_dim(1);
    let gradient = (direction * cosine.clone() - teacher) / length;
    let cosines: f32 = cosine.sum().into_scalar();
    Distillation {
        loss_sum: count as f32 - cosines,
        gradient: gradient.matmul(stretch.transpose()),
    }
}

/// The matrix `[from, to]` of linear interpolation along a row, sample centres at half positions
/// (`align_corners=False`).
fn interpolation(from: usize, to: usize, device: &Device) -> Tensor<2> {
    let mut matrix = vec![0.0f32; from * to];
    for column in 0..to {
        let position = ((column as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let first = (position as usize).min(from - 1);
        let share = (position - first as f64) as f32;
        matrix[first * to + column] += 1.0 - share;
        matrix[(first + 1).min(from - 1) * to + column] += share;
    }
    Tensor::from_data(TensorData::new(matrix, [from, to]), device)
}
