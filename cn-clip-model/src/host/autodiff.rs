//! The operations of [`rows`](super::rows) as operations of Burn, with gradients.
//!
//! Like Burn's own cheap operations they are computed again in the backward pass where the strategy
//! of the device says so (see [`crate::precision::track`]).

use burn::{
    backend::{
        Autodiff, BackendTypes, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            NodeId,
            checkpoint::{
                base::Checkpointer,
                retro_forward::RetroForward,
                state::BackwardStates,
                strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing},
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
        flex::FlexTensor,
    },
    nn::LayerNorm,
    tensor::{DType, GradientCheckpointingStrategy, Shape, Tensor, TensorData},
};

use super::{
    kernel::has_vectors,
    math::{Activation, Norm},
    rows::{RowFunction, norm_backward, norm_forward},
    source::Source,
};

/// A tensor with a graph.
type Tracked = <Autodiff<Flex> as BackendTypes>::FloatTensorPrimitive;

/// `x * sigmoid(1.702 x)`; `None` where only Burn can.
pub(crate) fn quick_gelu<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    apply(RowFunction::Activation(Activation::QuickGelu), x)
}

/// `x * Phi(x)`; `None` where only Burn can.
pub(crate) fn gelu<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    apply(RowFunction::Activation(Activation::Gelu), x)
}

/// Softmax over the last dimension; `None` where only Burn can.
pub(crate) fn softmax<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    apply(RowFunction::Softmax, x)
}

/// Layer norm of the last dimension; `None` where only Burn can.
pub(crate) fn layer_norm<const D: usize>(
    norm: &LayerNorm,
    epsilon: f64,
    x: &Tensor<D>,
) -> Option<Tensor<D>> {
    let epsilon = epsilon as f32;
    let (scale, shift) = (norm.gamma.val(), norm.beta.as_ref()?.val());
    let types = [x.dtype(), scale.dtype(), shift.dtype()];
    if types != [DType::F32; 3] || !has_vectors() {
        return None;
    }
    match x.gradient_checkpointing_strategy() {
        None => {
            let [x, scale, shift] =
                [Source::of(x.clone())?, Source::of(scale)?, Source::of(shift)?];
            let out = normalise(&x, &scale, &shift, epsilon);
            Some(Tensor::from_primitive::<Flex>(out))
        }
        Some(GradientCheckpointingStrategy::Balanced) => {
            norm_tracked::<BalancedCheckpointing, D>(x, scale, shift, epsilon)
        }
        Some(GradientCheckpointingStrategy::Disabled) => {
            norm_tracked::<NoCheckpointing, D>(x, scale, shift, epsilon)
        }
    }
}

fn apply<const D: usize>(function: RowFunction, x: &Tensor<D>) -> Option<Tensor<D>> {
    if x.dtype() != DType::F32 || !has_vectors() {
        return None;
    }
    match x.gradient_checkpointing_strategy() {
        None => {
            let out = forward(function, &Source::of(x.clone())?);
            Some(Tensor::from_primitive::<Flex>(out))
        }
        Some(GradientCheckpointingStrategy::Balanced) => {
            apply_tracked::<BalancedCheckpointing, D>(function, x)
        }
        Some(GradientCheckpointingStrategy::Disabled) => {
            apply_tracked::<NoCheckpointing, D>(function, x)
        }
    }
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn forward(function: RowFunction, x: &Source) -> FlexTensor {
    tensor(function.forward(x.values(), x.width()), x.shape())
}

fn normalise(x: &Source, scale: &Source, shift: &Source, epsilon: f32) -> FlexTensor {
    tensor(norm_forward(x.values(), &parameters(scale, shift, epsilon)), x.shape())
}

fn parameters(scale: &Source, shift: &Source, epsilon: f32) -> Norm {
    Norm { scale: scale.values().to_vec(), shift: shift.values().to_vec(), epsilon }
}

fn apply_tracked<C: CheckpointStrategy, const D: usize>(
    function: RowFunction,
    x: &Tensor<D>,
) -> Option<Tensor<D>>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    let x: Tracked = x.clone().try_into_primitive::<Autodiff<Flex, C>>().ok()?;
    let out = forward(function, &Source::from(x.primitive()));
    let prepared = Apply
        .prepare::<C>([x.node()])
        .memory_bound()
        .retro_forward(ApplyAgain { function, input: x.id() })
        .parents([&x])
        .stateful();
    let out = match prepared {
        OpsKind::Tracked(mut operation) => {
            let input = operation.checkpoint(&x);
            operation.finish((function, input), out)
        }
        OpsKind::UnTracked(operation) => operation.finish(out),
    };
    Some(Tensor::from_primitive::<Autodiff<Flex, C>>(out))
}

#[derive(Debug)]
struct Apply;

impl Backward<Flex, 1> for Apply {
    type State = (RowFunction, NodeId);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (function, input) = ops.state;
        let x = Source::from(&checkpointer.retrieve_node_output::<FlexTensor>(input));
        unary::<Flex, _>(ops.parents, ops.node, grads, |gradient| {
            let gradient = Source::from(&gradient);
            tensor(function.backward(x.values(), gradient.values(), x.width()), x.shape())
        });
    }
}

#[derive(Debug)]
struct ApplyAgain {
    function: RowFunction,
    input: NodeId,
}

impl RetroForward for ApplyAgain {
    fn forward(&self, states: &mut BackwardStates, out: NodeId) {
        let x = Source::from(&states.get_state::<FlexTensor>(&self.input));
        states.save(out, forward(self.function, &x));
    }
}

fn norm_tracked<C: CheckpointStrategy, const D: usize>(
    x: &Tensor<D>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    epsilon: f32,
) -> Option<Tensor<D>>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    let x: Tracked = x.clone().try_into_primitive::<Autodiff<Flex, C>>().ok()?;
    let scale: Tracked = scale.try_into_primitive::<Autodiff<Flex, C>>().ok()?;
    let shift: Tracked = shift.try_into_primitive::<Autodiff<Flex, C>>().ok()?;
    let [values, factors, terms] =
        [&x, &scale, &shift].map(|tensor| Source::from(tensor.primitive()));
    let out = normalise(&values, &factors, &terms, epsilon);
    let inputs = [x.id(), scale.id(), shift.id()];
    let prepared = Normalise
        .prepare::<C>([x.node(), scale.node(), shift.node()])
        .memory_bound()
        .retro_forward(NormaliseAgain { inputs, epsilon })
        .parents([&x, &scale, &shift])
        .stateful();
    let out = match prepared {
        OpsKind::Tracked(mut operation) => {
            let inputs = [operation.checkpoint(&x), operation.checkpoint(&scale)];
            operation.finish((inputs, epsilon), out)
        }
        OpsKind::UnTracked(operation) => operation.finish(out),
    };
    Some(Tensor::from_primitive::<Autodiff<Flex, C>>(out))
}

#[derive(Debug)]
struct Normalise;

impl Backward<Flex, 3> for Normalise {
    type State = ([NodeId; 2], f32);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (inputs, epsilon) = ops.state;
        let gradient = Source::from(&grads.consume::<Flex>(&ops.node));
        let [x, scale] = inputs
            .map(|input| Source::from(&checkpointer.retrieve_node_output::<FlexTensor>(input)));
        // The shift does not matter to its gradients.
        let norm = parameters(&scale, &scale, epsilon);
        let gradients = norm_backward(x.values(), gradient.values(), &norm);
        let shapes = [x.shape(), scale.shape(), scale.shape()];
        for ((parent, gradient), shape) in ops.parents.into_iter().zip(gradients).zip(shapes) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, tensor(gradient, shape));
            }
        }
    }
}

#[derive(Debug)]
struct NormaliseAgain {
    /// Rows, scale and shift.
    inputs: [NodeId; 3],
    epsilon: f32,
}

impl RetroForward for NormaliseAgain {
    fn forward(&self, states: &mut BackwardStates, out: NodeId) {
        let [x, scale, shift] =
            self.inputs.map(|input| Source::from(&states.get_state::<FlexTensor>(&input)));
        states.save(out, normalise(&x, &scale, &shift, self.epsilon));
    }
}
