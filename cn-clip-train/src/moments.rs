//! Moments of AdamW, and what is made of them.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

/// Values one thread updates at a time.
const CHUNK: usize = 1 << 15;

/// First and second moment of a parameter, flattened in the layout of the module.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One per parameter, and all of the same variant.
pub(crate) enum Moments {
    /// In ordinary memory, for devices that compute there.
    Host { first: Vec<f32>, second: Vec<f32> },
    /// On a device of its own memory.
    Device { first: Tensor<1>, second: Tensor<1> },
}

/// How fast moments follow the gradient.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub beta1: f64,
    pub beta2: f64,
    /// Of the gradient.
    pub factor: f64,
}

/// Factors of one update, bias corrections included.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub keep: f64,
    pub rate: f64,
    pub root: f64,
    pub epsilon: f64,
}

impl Moments {
    /// Of a parameter that has not been updated.
    pub fn zeros(count: usize, device: &Device, host: bool) -> Self {
        match host {
            true => Self::Host { first: vec![0.0; count], second: vec![0.0; count] },
            false => Self::Device {
                first: Tensor::zeros([count], device),
                second: Tensor::zeros([count], device),
            },
        }
    }

    /// Of these values.
    pub fn new(first: Vec<f32>, second: Vec<f32>, device: &Device, host: bool) -> Self {
        if host {
            return Self::Host { first, second };
        }
        let tensor = |values: Vec<f32>| {
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        Self::Device { first: tensor(first), second: tensor(second) }
    }

    /// Their values.
    pub fn values(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        Some(match self {
            Self::Host { first, second } => (first.clone(), second.clone()),
            Self::Device { first, second } => (
                first.clone().into_data().try_into_vec().ok()?,
                second.clone().into_data().try_into_vec().ok()?,
            ),
        })
    }

    /// Lets them follow a gradient.
    pub fn follow<const D: usize>(&mut self, gradient: Tensor<D>, rates: Rates) {
        let Rates { beta1, beta2, factor } = rates;
        match self {
            Self::Host { first, second } => {
                let gradient = gradient.into_data();
                let (fresh1, fresh2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
                let (beta2, factor) = (beta2 as f32, factor as f32);
                let Ok(gradient) = gradient.as_slice::<f32>() else { return };
                let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                let follow = |(gradient, (first, second)): (&[f32], (&mut [f32], &mut [f32]))| {
                    for ((gradient, first), second) in gradient.iter().zip(first).zip(second) {
                        let gradient = gradient * factor;
                        *first += (gradient - *first) * fresh1;
                        *second = *second * beta2 + gradient * gradient * fresh2;
                    }
                };
                gradient.par_chunks(CHUNK).zip(moments).for_each(follow);
            }
            Self::Device { first, second } => {
                let gradient = gradient.reshape([first.dims()[0]]) * factor;
                *first = first.clone() * beta1 + gradient.clone() * (1.0 - beta1);
                *second = second.clone() * beta2 + gradient.square() * (1.0 - beta2);
            }
        }
    }

    /// The parameter after an update by them; in place where it lies in ordinary memory and is not
    /// shared.
    pub fn update<const D: usize>(&self, value: Tensor<D>, rule: Rule) -> Tensor<D> {
        let Rule { keep, rate, root, epsilon } = rule;
        match self {
            Self::Host { first, second } => {
                let device = value.device();
                let mut data = value.into_data();
                let (keep, rate) = (keep as f32, rate as f32);
                let (root, epsilon) = (root as f32, epsilon as f32);
                let moments = first.par_chunks(CHUNK).zip(second.par_chunks(CHUNK));
                let update = |(values, (first, second)): (&mut [f32], (&[f32], &[f32]))| {
                    for ((value, first), second) in values.iter_mut().zip(first).zip(second) {
                        *value = *value * keep - rate * (*first / (second.sqrt() / root + epsilon));
                    }
                };
                if let Ok(values) = data.as_mut_slice::<f32>() {
                    values.par_chunks_mut(CHUNK).zip(moments).for_each(update);
                }
                Tensor::from_data(data, &device)
            }
            Self::Device { first, second } => {
                let shape = value.dims();
                let denominator = second.clone().sqrt() / root + epsilon;
                let update = (first.clone() / denominator) * rate;
                value * keep - update.reshape(shape)
            }
        }
    }
}
