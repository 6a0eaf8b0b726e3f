//! Tensors through a [`Communicator`].

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use cn_clip_model::{Clip, precision::to_fp32};

use crate::{TrainError, communicator::Communicator};

/// Values sent at once: enough to use the line well, little beside the gradient of a model.
const BUCKET: usize = 1 << 23;

/// Values of a tensor, row-major, as 32-bit floats.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Rows of all ranks, in rank order.
pub fn gather_rows(
    own: Tensor<2>,
    communicator: &dyn Communicator,
) -> Result<Tensor<2>, TrainError> {
    if communicator.world_size() == 1 {
        return Ok(own);
    }
    let ([rows, columns], device) = (own.dims(), own.device());
    let all = communicator.all_gather(values(own))?;
    let shape = [rows * communicator.world_size(), columns];
    Ok(Tensor::from_data(TensorData::new(all, shape), &device))
}

/// Gradients as 32-bit floats, times a factor.
pub fn widen(model: &Clip, gradients: GradientsParams, factor: f64) -> GradientsParams {
    struct Widener {
        narrow: GradientsParams,
        wide: GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Widener {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.narrow.remove::<D>(param.id) {
                let gradient = to_fp32(gradient);
                let gradient = if self.factor == 1.0 { gradient } else { gradient * self.factor };
                self.wide.register(param.id, gradient);
            }
        }
    }
    let mut widener = Widener { narrow: gradients, wide: GradientsParams::new(), factor };
    model.visit(&mut widener);
    widener.wide
}

/// Takes the next values of a sum as the gradient of a parameter.
type Register = Box<dyn FnOnce(Vec<f32>, &Device, &mut GradientsParams)>;

/// Sums the gradients of all ranks, a bucket at a time. Every rank adds gradients of the same
/// parameters in the same order.
pub struct Reducer<'a> {
    model: &'a Clip,
    communicator: &'a dyn Communicator,
    /// Is given the sums.
    take: &'a dyn Fn(GradientsParams),
    device: Device,
    bucket: Vec<f32>,
    /// Gradients in the bucket: their sizes, and what becomes of their sums.
    waiting: Vec<(usize, Register)>,
    error: Option<TrainError>,
}

impl<'a> Reducer<'a> {
    /// A sum that is given to `take`.
    pub fn new(
        model: &'a Clip,
        communicator: &'a dyn Communicator,
        take: &'a dyn Fn(GradientsParams),
    ) -> Self {
        let device = model.device().inner();
        let (bucket, waiting) = (Vec::new(), Vec::new());
        Self { model, communicator, take, device, bucket, waiting, error: None }
    }

    /// Adds gradients of parameters that had none.
    pub fn add(&mut self, gradients: GradientsParams) {
        if self.communicator.world_size() == 1 {
            return (self.take)(gradients);
        }
        let model = self.model;
        model.visit(&mut Filler { gradients, reducer: self });
    }

    /// Sums what is left.
    pub fn finish(mut self) -> Result<(), TrainError> {
        self.flush();
        self.error.map_or(Ok(()), Err)
    }

    fn flush(&mut self) {
        if self.error.is_some() || self.bucket.is_empty() {
            return;
        }
        match self.communicator.all_reduce_sum(std::mem::take(&mut self.bucket)) {
            Err(error) => self.error = Some(error),
            Ok(sum) => {
                let (mut rest, mut sums) = (&sum[..], GradientsParams::new());
                for (count, register) in self.waiting.drain(..) {
                    let (own, tail) = rest.split_at(count.min(rest.len()));
                    register(own.to_vec(), &self.device, &mut sums);
                    rest = tail;
                }
                (self.take)(sums);
            }
        }
    }
}

/// Puts gradients into the bucket.
struct Filler<'a, 'b> {
    gradients: GradientsParams,
    reducer: &'a mut Reducer<'b>,
}

impl ModuleVisitor for Filler<'_, '_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
        let (id, shape) = (param.id, gradient.dims());
        let register: Register = Box::new(move |sum, device, sums| {
            sums.register::<D>(id, Tensor::from_data(TensorData::new(sum, shape), device));
        });
        let reducer = &mut *self.reducer;
        let start = reducer.bucket.len();
        reducer.bucket.extend(gradient.into_data().iter::<f32>());
        reducer.waiting.push((reducer.bucket.len() - start, register));
        if reducer.bucket.len() >= BUCKET {
            reducer.flush();
        }
    }
}

/// Makes the running averages of batch norms the mean over ranks: each rank has normalised its own
/// micro-batches.
pub fn average_statistics(model: &Clip, communicator: &dyn Communicator) -> Result<(), TrainError> {
    let own = model.running_statistics();
    if communicator.world_size() == 1 || own.is_empty() {
        return Ok(());
    }
    let mut sum = communicator.all_reduce_sum(own)?;
    let share = 1.0 / communicator.world_size() as f32;
    sum.iter_mut().for_each(|value| *value *= share);
    model.set_running_statistics(&sum);
    Ok(())
}
