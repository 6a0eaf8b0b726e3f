//! What Burn 0.22.1 computes otherwise than it should, done another way. `docs/backends.md` has how
//! to reproduce each.

use std::f64::consts::FRAC_1_SQRT_2;

use burn::tensor::{DType, Device, Int, Tensor, activation};

use crate::precision::in_fp32;

/// `x * Phi(x)`, the normal distribution's integral by the error function.
///
/// Burn's own has this value, but on every backend except `flex` the gradient of the approximation
/// by tanh, which is up to 9e-4 away. The pieces of this one are in 32 bits at least.
pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.is_autodiff() {
        false => activation::gelu(x),
        true => in_fp32(x, |x| ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * x * 0.5),
    }
}

/// `0, 1, ..., elements - 1` in 32 bits without sign.
///
/// With fusion, Burn counts from 1 and adds the start less a step, which for a start of 0 is a number
/// that has a sign: it panics.
pub(crate) fn count(elements: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::arange(1..elements as i64 + 1, (device, DType::U32)).sub_scalar(1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn gelu_has_the_gradient_of_the_error_function() {
        let points: Vec<f64> = (-60..=60).map(|step| f64::from(step) / 10.0).collect();
        let device = Device::default().autodiff();
        let data = TensorData::new(points.clone(), [points.len()]);
        let x = Tensor::<1>::from_data(data, (&device, DType::F64)).require_grad();
        let y = gelu(x.clone());
        let values: Vec<f64> = y.clone().into_data().try_into_vec().unwrap();
        let gradient = x.grad(&y.sum().backward()).unwrap();
        let gradient: Vec<f64> = gradient.into_data().try_into_vec().unwrap();
        let step = 1e-4;
        for ((x, y), gradient) in points.iter().zip(values).zip(gradient) {
            let at = |x: f64| {
                let data = TensorData::new(vec![x], [1]);
                let x = Tensor::<1>::from_data(data, (&Device::default(), DType::F64));
                gelu(x).into_scalar::<f64>()
            };
            assert!((y - at(*x)).abs() < 1e-12, "{x}: {y}");
            let expected = (at(x + step) - at(x - step)) / (2.0 * step);
            assert!((gradient - expected).abs() < 1e-7, "{x}: {gradient} {expected}");
        }
    }

    #[test]
    fn numbers_are_counted_from_zero() {
        for elements in [0, 1, 5] {
            let numbers = count(elements, &Device::default()).into_data();
            assert_eq!(numbers.dtype(), DType::U32);
            assert_eq!(numbers.try_into_vec::<u32>().unwrap(), Vec::from_iter(0..elements as u32));
        }
    }
}
