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
    tensor::{DType, GradientCheckpointingStrategy, Shape, Tensor, TensorData},
};

use super::{kernel::has_vectors, math::Activation, rows::RowFunction, source::Source};

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
