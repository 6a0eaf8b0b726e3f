//! Class vectors and probabilities.

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::ZeroShotError;

/// Factor of the cosines before the softmax: fixed, not the model's own scale.
pub const LOGIT_SCALE: f64 = 100.0;

/// Unit vectors of classes, in single precision on one device.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// `[dim, classes]`
    weights: Tensor<2>,
}

impl Classifier {
    /// From the prompt features of each class, `[prompts, dim]` each, normalised or not: every
    /// prompt is normalised, then their mean.
    ///
    /// # Errors
    /// [`ZeroShotError::NotFinite`] names a class whose vector is NaN (features NaN or zero, or no
    /// prompts), [`ZeroShotError::Shape`] if there is no class or sizes differ.
    pub fn from_prompts(
        prompts: impl IntoIterator<Item = Tensor<2>>,
        device: &Device,
    ) -> Result<Self, ZeroShotError> {
        let vectors: Result<Vec<_>, _> = prompts.into_iter().map(class_vector).collect();
        let vectors = vectors?;
        Self::from_vectors(&vectors.iter().map(Vec::as_slice).collect::<Vec<_>>(), device)
    }

    /// From the unit vectors of classes, as [`Classifier::weights`] holds them in its columns.
    ///
    /// # Errors
    /// As [`Classifier::from_prompts`].
    pub fn from_vectors(vectors: &[&[f32]], device: &Device) -> Result<Self, ZeroShotError> {
        let dim = vectors.first().map_or(0, |vector| vector.len());
        if dim == 0 {
            let what = "a classifier needs at least one class".to_owned();
            return Err(ZeroShotError::Shape { what });
        }
        for (class, vector) in vectors.iter().enumerate() {
            if vector.len() != dim {
                let width = vector.len();
                let what = format!("prompts of class {class} have {width} values, not {dim}");
                return Err(ZeroShotError::Shape { what });
            }
            if !vector.iter().all(|value| value.is_finite()) {
                let what = format!("the vector of class {class}");
                return Err(ZeroShotError::NotFinite { what });
            }
        }
        let data = TensorData::new(vectors.concat(), [vectors.len(), dim]);
        Ok(Self { weights: Tensor::<2>::from_data(data, (device, DType::F32)).transpose() })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.weights.dims()[1]
    }

    /// Unit vectors of the classes, `[dim, classes]`.
    pub fn weights(&self) -> Tensor<2> {
        self.weights.clone()
    }

    /// Probabilities of `image_features` `[images, dim]`, normalised or not, on the classifier's
    /// device: the softmax of 100 times the cosines, `[images, classes]` row by row.
    ///
    /// # Errors
    /// [`ZeroShotError::NotFinite`] names a picture whose features are NaN or zero,
    /// [`ZeroShotError::Shape`] if the sizes differ.
    pub fn probabilities(&self, image_features: Tensor<2>) -> Result<Vec<f32>, ZeroShotError> {
        let [_, width] = image_features.dims();
        let [dim, classes] = self.weights.dims();
        if width != dim {
            let what = format!("picture features have {width} values, class vectors {dim}");
            return Err(ZeroShotError::Shape { what });
        }
        let cosines = unit_rows(image_features.cast(DType::F32)).matmul(self.weights.clone());
        let probabilities = to_vec(softmax(cosines * LOGIT_SCALE, 1))?;
        match probabilities.iter().position(|value| !value.is_finite()) {
            Some(at) => {
                let what = format!("the prediction of picture {} of the batch", at / classes);
                Err(ZeroShotError::NotFinite { what })
            }
            None => Ok(probabilities),
        }
    }
}

/// Unit vector of a class, from the features of its prompts `[prompts, dim]`.
pub(super) fn class_vector(features: Tensor<2>) -> Result<Vec<f32>, ZeroShotError> {
    to_vec(unit_rows(unit_rows(features.cast(DType::F32)).mean_dim(0)))
}

/// Divides each row by its length; a row of zeros becomes NaN, as in the reference.
fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    let lengths = rows.clone().powi_scalar(2).sum_dim(1).sqrt();
    rows / lengths
}

fn to_vec(tensor: Tensor<2>) -> Result<Vec<f32>, ZeroShotError> {
    let data = tensor.try_into_data().map_err(|error| ZeroShotError::Device(error.to_string()))?;
    data.try_into_vec().map_err(|error| ZeroShotError::Device(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    fn tensor<const R: usize, const C: usize>(rows: [[f32; C]; R]) -> Tensor<2> {
        Tensor::from_data(rows, &Device::default())
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance)
    }

    #[test]
    fn prompts_are_normalised_then_averaged_then_normalised() {
        let device = Device::default();
        let prompts = [tensor([[10.0, 0.0], [0.0, 0.1]]), tensor([[0.0, -3.0], [0.0, -1.0]])];
        let classifier = Classifier::from_prompts(prompts, &device).unwrap();
        let weights = classifier.weights().into_data().try_into_vec::<f32>().unwrap();
        let half = 0.5_f32.sqrt();
        assert_eq!(classifier.classes(), 2);
        assert!(close(&weights, &[half, 0.0, half, -1.0], 1e-6), "{weights:?}");

        let probabilities = classifier.probabilities(tensor([[0.0, 5.0], [1.0, -1.0]])).unwrap();
        // Cosines (0.7071, -1) and (0, 0.7071), times 100.
        assert!(close(&probabilities, &[1.0, 0.0, 0.0, 1.0], 1e-6), "{probabilities:?}");
        let even = classifier.probabilities(tensor([[1.0, -(2.0_f32.sqrt() - 1.0)]])).unwrap();
        assert!(even[0] > 0.0 && (even[0] + even[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn probabilities_are_the_softmax_of_a_hundred_cosines() {
        let device = Device::default();
        let prompts = [tensor([[1.0, 0.0]]), tensor([[0.999, 0.0447]]), tensor([[0.99, 0.141]])];
        let classifier = Classifier::from_prompts(prompts, &device).unwrap();
        let found = classifier.probabilities(tensor([[2.0, 0.0]])).unwrap();
        let cosine = |x: f64, y: f64| x / x.hypot(y);
        let logits = [1.0, cosine(0.999, 0.0447), cosine(0.99, 0.141)].map(|c| (100.0 * c).exp());
        let expected = logits.map(|logit| (logit / logits.iter().sum::<f64>()) as f32);
        assert!(close(&found, &expected, 1e-5), "{found:?} {expected:?}");
    }

    /// The reference's class matrices are a fixed point: unit columns made from themselves.
    #[test]
    fn reference_classifiers_are_kept() {
        let path = "../tests/fixtures/zeroshot/classifiers.safetensors";
        let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let device = Device::default();
        assert!(!file.is_empty());
        for (name, view) in file.iter() {
            let [dim, classes] = *view.shape() else { panic!("{name}") };
            let bytes = view.data().chunks_exact(4);
            let values: Vec<f32> =
                bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let matrix =
                Tensor::<2>::from_data(TensorData::new(values.clone(), [dim, classes]), &device);
            let prompts = (0..classes).map(|class| {
                let column = matrix.clone().slice([0..dim, class..class + 1]).transpose();
                Tensor::cat(vec![column.clone() * 3.0, column * 0.5], 0)
            });
            let classifier = Classifier::from_prompts(prompts, &device).unwrap();
            let found = classifier.weights().into_data().try_into_vec::<f32>().unwrap();
            assert!(close(&found, &values, 1e-6), "{name}");
        }
    }

    #[test]
    fn bad_features_are_named() {
        let device = Device::default();
        let build = |prompts: Vec<Tensor<2>>| {
            Classifier::from_prompts(prompts, &device).unwrap_err().to_string()
        };
        let good = || tensor([[1.0, 0.0]]);
        for bad in [[f32::NAN, 1.0], [0.0, 0.0], [f32::INFINITY, 0.0]] {
            let error = build(vec![good(), tensor([bad])]);
            assert!(error.starts_with("the vector of class 1 is not finite"), "{error}");
        }
        assert!(build(vec![tensor([[1.0, 0.0], [-1.0, 0.0]])]).contains("class 0"));
        assert_eq!(
            build(vec![good(), tensor([[1.0, 2.0, 3.0]])]),
            "prompts of class 1 have 3 values, not 2"
        );
        assert!(build(vec![]).contains("at least one class"));

        let classifier = Classifier::from_prompts([good()], &device).unwrap();
        let error = classifier.probabilities(tensor([[1.0, 2.0], [f32::NAN, 0.0]])).unwrap_err();
        assert!(error.to_string().starts_with("the prediction of picture 1"), "{error}");
        let error = classifier.probabilities(tensor([[1.0]])).unwrap_err();
        assert!(matches!(error, ZeroShotError::Shape { .. }));
    }
}
