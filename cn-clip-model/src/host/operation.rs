//! Operations of Burn with hand-written gradients.

use std::{fmt::Debug, marker::PhantomData, sync::Arc};

use burn::{
    backend::{
        Autodiff, BackendTypes, DispatchKindConversion, DispatchTensor, Flex,
        autodiff::{
            checkpoint::{
                base::Checkpointer,
                strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing},
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        flex::FlexTensor,
    },
    tensor::{DType, GradientCheckpointingStrategy, Shape, Tensor, TensorData},
};

use super::{kernel::has_vectors, source::Source};

/// A tensor with a graph.
type Tracked = <Autodiff<Flex> as BackendTypes>::FloatTensorPrimitive;

/// An operation and its inputs.
pub(super) trait Operation: Debug + Clone + Send + Sync + 'static {
    /// What the backward pass needs beside the inputs.
    type Kept: Debug + Clone + Send + Sync;

    /// The inputs, in the order in which they were added.
    fn inputs(&self) -> &[Source];

    /// Output, and what is kept.
    fn forward(&self) -> (FlexTensor, Self::Kept);

    /// Gradients of the inputs, in their order, given that of the output. Of the first input it may
    /// be empty where it is not `asked`.
    fn backward(&self, kept: Self::Kept, gradient: Source, asked: bool) -> Vec<Vec<f32>>;
}

/// Tensors in a fixed order, all with a graph or none.
pub(super) struct Inputs {
    strategy: Option<GradientCheckpointingStrategy>,
    pub sources: Vec<Source>,
    /// The same with their graphs, where there are any.
    tracked: Vec<Tracked>,
}

impl Inputs {
    /// With the first; `None` where only Burn can.
    pub fn new<const D: usize>(x: Tensor<D>) -> Option<Self> {
        if !has_vectors() {
            return None;
        }
        let strategy = x.gradient_checkpointing_strategy();
        let mut inputs = Self { strategy, sources: Vec::new(), tracked: Vec::new() };
        inputs.add(x)?;
        Some(inputs)
    }

    /// Whether they have graphs.
    pub fn are_tracked(&self) -> bool {
        self.strategy.is_some()
    }

    /// Adds another; `None` where only Burn can.
    pub fn add<const D: usize>(&mut self, tensor: Tensor<D>) -> Option<()> {
        if tensor.dtype() != DType::F32 || tensor.gradient_checkpointing_strategy() != self.strategy
        {
            return None;
        }
        let tracked: Tracked = match self.strategy {
            None => {
                self.sources.push(Source::of(tensor)?);
                return Some(());
            }
            Some(GradientCheckpointingStrategy::Balanced) => {
                tensor.try_into_primitive::<Autodiff<Flex, BalancedCheckpointing>>().ok()?
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                tensor.try_into_primitive::<Autodiff<Flex, NoCheckpointing>>().ok()?
            }
        };
        self.sources.push(Source::from(tracked.primitive()));
        self.tracked.push(tracked);
        Some(())
    }

    /// The output of `operation`, which has these `N` inputs; `see` is shown what is kept.
    pub fn apply<const N: usize, const D: usize, O: Operation>(
        self,
        operation: impl FnOnce(Vec<Source>) -> O,
        see: impl FnOnce(&O::Kept),
    ) -> Option<Tensor<D>> {
        let operation = operation(self.sources);
        match self.strategy {
            None => {
                let (out, kept) = operation.forward();
                see(&kept);
                Some(Tensor::from_primitive::<Flex>(out))
            }
            Some(GradientCheckpointingStrategy::Balanced) => {
                record::<BalancedCheckpointing, N, D, O>(self.tracked, operation, see)
            }
            Some(GradientCheckpointingStrategy::Disabled) => {
                record::<NoCheckpointing, N, D, O>(self.tracked, operation, see)
            }
        }
    }
}

fn record<C: CheckpointStrategy, const N: usize, const D: usize, O: Operation>(
    inputs: Vec<Tracked>,
    operation: O,
    see: impl FnOnce(&O::Kept),
) -> Option<Tensor<D>>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    let inputs: [Tracked; N] = inputs.try_into().ok()?;
    let nodes = inputs.each_ref().map(Tracked::node);
    let prepared = Apply::<O>(PhantomData).prepare::<C>(nodes).compute_bound();
    let (out, kept) = operation.forward();
    see(&kept);
    let out = match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(Arc::new((operation, kept)), out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    };
    Some(Tensor::from_primitive::<Autodiff<Flex, C>>(out))
}

#[derive(Debug)]
struct Apply<O>(PhantomData<O>);

impl<O: Operation, const N: usize> Backward<Flex, N> for Apply<O> {
    type State = Arc<(O, O::Kept)>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = Source::from(&grads.consume::<Flex>(&ops.node));
        let (operation, kept) = Arc::unwrap_or_clone(ops.state);
        let asked = ops.parents.first().is_some_and(Option::is_some);
        let found = operation.backward(kept, gradient, asked);
        for ((parent, source), values) in ops.parents.into_iter().zip(operation.inputs()).zip(found)
        {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, tensor(values, source.shape()));
            }
        }
    }
}

/// Values in row order as a tensor.
pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
