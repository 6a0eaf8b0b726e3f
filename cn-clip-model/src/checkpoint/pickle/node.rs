//! What a pickle holds: an arena of nodes.
//!
//! Nodes refer to each other by index, so shared and nested objects cost neither copies nor
//! recursion.

use super::super::tensor::ElementType;

/// Index of a node in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeId(pub(super) u32);

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<NodeId>),
    /// A tuple, also `torch.Size`.
    Tuple(Vec<NodeId>),
    /// A dict or an `OrderedDict`, in order of insertion.
    Dict(Vec<(NodeId, NodeId)>),
    /// A known Python name, such as `torch.float16`.
    Global(&'static str),
    /// An object of a TorchScript class, and the dict of its attributes.
    Object(Option<NodeId>),
    /// A storage of `count` elements in the archive's entry `data/<key>`.
    Storage {
        /// Element type.
        element: ElementType,
        /// Name of the archive's entry.
        key: String,
        /// Number of elements.
        count: u64,
    },
    /// A tensor.
    Tensor {
        /// Its [`Node::Storage`].
        storage: NodeId,
        /// First element.
        offset: u64,
        /// Shape.
        shape: Vec<usize>,
        /// Strides in elements.
        strides: Vec<usize>,
    },
}

/// A parsed pickle.
#[derive(Debug, Clone)]
pub struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: NodeId,
}

impl Pickle {
    /// The outermost object.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// An object.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Entries of a dict; `None` for anything else.
    pub fn entries(&self, id: NodeId) -> Option<&[(NodeId, NodeId)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// Value of a dict under a string key.
    pub fn get(&self, id: NodeId, key: &str) -> Option<NodeId> {
        let entries = self.entries(id)?;
        let same = |(name, _): &&(NodeId, NodeId)| self.str(*name) == Some(key);
        entries.iter().rev().find(same).map(|(_, value)| *value)
    }

    /// A string; `None` for anything else.
    pub fn str(&self, id: NodeId) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; `None` for anything else.
    pub fn int(&self, id: NodeId) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A number as a float; `None` for anything else.
    pub fn float(&self, id: NodeId) -> Option<f64> {
        match self.node(id) {
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// Items of a list or tuple; `None` for anything else.
    pub fn items(&self, id: NodeId) -> Option<&[NodeId]> {
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) => Some(items),
            _ => None,
        }
    }
}
