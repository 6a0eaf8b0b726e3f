//! The Python objects a checkpoint may hold: what each known name means.

use super::{
    super::tensor::ElementType,
    node::{Node, NodeId},
    read::{Machine, PickleError, Step},
};

/// Every Python name that may occur. Storages map to their element type in [`storage_type`].
const GLOBALS: &[&str] = &[
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "torch.float64",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "torch.int64",
    "torch.DoubleStorage",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
    SCRIPT,
];

/// Stands for every class that TorchScript has made: their names are of no interest.
pub(super) const SCRIPT: &str = "__torch__";

fn storage_type(global: &str) -> Option<ElementType> {
    Some(match global {
        "torch.DoubleStorage" => ElementType::F64,
        "torch.FloatStorage" => ElementType::F32,
        "torch.HalfStorage" => ElementType::F16,
        "torch.BFloat16Storage" => ElementType::Bf16,
        "torch.LongStorage" => ElementType::I64,
        "torch.IntStorage" => ElementType::I32,
        "torch.ShortStorage" => ElementType::I16,
        "torch.CharStorage" => ElementType::I8,
        "torch.ByteStorage" => ElementType::U8,
        "torch.BoolStorage" => ElementType::Bool,
        _ => return None,
    })
}

/// Most dimensions a tensor may have.
const MAX_RANK: usize = 16;

impl Machine<'_> {
    pub fn global(&mut self, module: &str, name: &str) -> Step {
        let script = module == SCRIPT || module.starts_with("__torch__.");
        let full = if script { SCRIPT.to_string() } else { format!("{module}.{name}") };
        match GLOBALS.iter().find(|known| **known == full) {
            Some(known) => self.push(Node::Global(known)),
            None => return Err(PickleError::Global(full)),
        }
        Ok(())
    }

    /// `('storage', torch.FloatStorage, '0', 'cpu', 1024)`.
    pub fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let storage = || -> Option<Node> {
            let Node::Tuple(parts) = self.get(id) else { return None };
            let [tag, kind, key, _, count] = parts[..] else { return None };
            let (Node::Str(tag), Node::Global(kind)) = (self.get(tag), self.get(kind)) else {
                return None;
            };
            let (Node::Str(key), Node::Int(count)) = (self.get(key), self.get(count)) else {
                return None;
            };
            let (element, count) = (storage_type(kind)?, u64::try_from(*count).ok()?);
            (tag == "storage").then(|| Node::Storage { element, key: key.clone(), count })
        };
        let node = storage().ok_or_else(|| self.damaged("a storage in an unknown form"))?;
        self.push(node);
        Ok(())
    }

    pub fn reduce(&mut self) -> Step {
        let parts = self.take(2)?;
        let (Node::Global(global), Node::Tuple(args)) = (self.get(parts[0]), self.get(parts[1]))
        else {
            return Err(self.damaged("a call of something that has no name"));
        };
        let made = match *global {
            "collections.OrderedDict" => self.ordered_dict(args),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => self.tensor(args),
            "torch.device" => Some(Node::None),
            "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar" => {
                self.numpy_scalar(args)
            }
            "_codecs.encode" => self.latin1(args),
            "torch._utils._rebuild_parameter"
            | "torch.Size"
            | "numpy.dtype"
            | "torch.jit._pickle.build_intlist"
            | "torch.jit._pickle.build_doublelist"
            | "torch.jit._pickle.build_boollist"
            | "torch.jit._pickle.build_tensorlist"
            | "torch.jit._pickle.restore_type_tag" => {
                // The first argument stands for the object.
                let id = args.first().copied();
                self.stack.push(id.ok_or_else(|| self.damaged("a call without arguments"))?);
                return Ok(());
            }
            _ => None,
        };
        let node = made.ok_or_else(|| self.damaged("a call with unusual arguments"))?;
        self.charge(&node)?;
        self.push(node);
        Ok(())
    }

    /// Calls copy their arguments, and a stored argument can be used over and over: what is
    /// copied in all must stay within the size of the input.
    fn charge(&mut self, node: &Node) -> Step {
        self.copied += match node {
            Node::Dict(entries) => entries.len(),
            Node::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        match self.copied > self.bytes.len() {
            true => Err(self.damaged("objects that multiply")),
            false => Ok(()),
        }
    }

    fn ordered_dict(&self, args: &[NodeId]) -> Option<Node> {
        let Some(list) = args.first() else { return Some(Node::Dict(Vec::new())) };
        let (Node::List(items) | Node::Tuple(items)) = self.get(*list) else { return None };
        let pair = |id: &NodeId| match self.get(*id) {
            Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
            _ => None,
        };
        items.iter().map(pair).collect::<Option<_>>().map(Node::Dict)
    }

    fn tensor(&self, args: &[NodeId]) -> Option<Node> {
        let [storage, offset, shape, strides, ..] = *args else { return None };
        let Node::Storage { .. } = self.get(storage) else { return None };
        let Node::Int(offset) = self.get(offset) else { return None };
        let sizes = |id: NodeId| -> Option<Vec<usize>> {
            let Node::Tuple(items) = self.get(id) else { return None };
            let size = |id: &NodeId| match self.get(*id) {
                Node::Int(value) => usize::try_from(*value).ok(),
                _ => None,
            };
            items.iter().map(size).collect()
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let offset = u64::try_from(*offset).ok()?;
        (shape.len() == strides.len() && shape.len() <= MAX_RANK).then_some(Node::Tensor {
            storage,
            offset,
            shape,
            strides,
        })
    }

    /// A numpy scalar: the type's name (`f8`) and its little-endian bytes.
    fn numpy_scalar(&self, args: &[NodeId]) -> Option<Node> {
        let [kind, bytes] = *args else { return None };
        let (Node::Str(kind), Node::Bytes(bytes)) = (self.get(kind), self.get(bytes)) else {
            return None;
        };
        Some(match kind.as_str() {
            "f8" => Node::Float(f64::from_le_bytes(bytes.as_slice().try_into().ok()?)),
            "f4" => Node::Float(f32::from_le_bytes(bytes.as_slice().try_into().ok()?).into()),
            "i8" => Node::Int(i64::from_le_bytes(bytes.as_slice().try_into().ok()?)),
            "i4" => Node::Int(i32::from_le_bytes(bytes.as_slice().try_into().ok()?).into()),
            "b1" => Node::Bool(*bytes.first()? != 0),
            _ => return None,
        })
    }

    fn latin1(&self, args: &[NodeId]) -> Option<Node> {
        let [text, codec] = *args else { return None };
        let (Node::Str(text), Node::Str(codec)) = (self.get(text), self.get(codec)) else {
            return None;
        };
        let bytes = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<_>>();
        bytes.filter(|_| codec == "latin1").map(Node::Bytes)
    }
}
