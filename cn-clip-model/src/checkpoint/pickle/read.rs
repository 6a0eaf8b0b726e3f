//! The reader: a stack machine over an arena of nodes. Memory is bounded by the size of the input.

use std::collections::HashMap;

use super::{
    node::{Node, NodeId, Pickle},
    object::SCRIPT,
};

/// Why a pickle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The data ends in the middle of something.
    #[error("pickle ends early at byte {0}: the file is truncated")]
    Truncated(usize),
    /// An instruction that has no place in a checkpoint.
    #[error("pickle instruction {code:#04x} at byte {at} is not data: refused")]
    Opcode {
        /// The instruction.
        code: u8,
        /// Its position.
        at: usize,
    },
    /// A Python name that is not on the list of known ones.
    #[error("pickle refers to `{0}`, which is not known to be data: refused")]
    Global(String),
    /// Something that contradicts itself.
    #[error("pickle is damaged at byte {at}: {reason}")]
    Damaged {
        /// Position.
        at: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Most objects and references to them; training files of large models have some hundred thousand.
const MAX_OBJECTS: usize = 1 << 22;

/// Parses one pickle, protocols 0 to 5 as far as data needs them.
pub fn parse(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root })
}

pub(super) struct Machine<'a> {
    pub bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    pub stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u64, NodeId>,
    pub copied: usize,
}

pub(super) type Step<T = ()> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<NodeId> {
        loop {
            let at = self.at;
            if self.nodes.len().max(self.memo.len()).max(self.marks.len()) >= MAX_OBJECTS {
                return Err(self.damaged("more objects than any checkpoint has"));
            }
            let [code] = self.array()?;
            match code {
                b'.' => return self.pop(),
                0x80 => drop(self.array::<1>()?),
                0x95 => drop(self.array::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = *self.stack.last().ok_or_else(|| self.damaged("empty stack"))?;
                    self.stack.push(top);
                }
                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'K' => {
                    let [value] = self.array()?;
                    self.push(Node::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()));
                }
                0x8a => self.long()?,
                b'I' => self.text_int()?,
                b'L' => self.text_int()?,
                b'F' => {
                    let value = self.line()?.parse();
                    let value = value.map_err(|_| self.damaged("a float that is no number"))?;
                    self.push(Node::Float(value));
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value));
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?).into();
                    self.string(length)?;
                }
                0x8c => {
                    let [length] = self.array()?;
                    self.string(length.into())?;
                }
                0x8d => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.string(length)?;
                }
                b'B' => {
                    let length = u32::from_le_bytes(self.array()?).into();
                    self.binary(length)?;
                }
                b'C' => {
                    let [length] = self.array()?;
                    self.binary(length.into())?;
                }
                0x8e => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.binary(length)?;
                }
                b'U' => {
                    let [length] = self.array()?;
                    self.binary(length.into())?;
                }
                b'T' => {
                    let length = u32::from_le_bytes(self.array()?).into();
                    self.binary(length)?;
                }
                b']' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                b')' => self.push(Node::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let items = self.take(count)?;
                    self.push(Node::Tuple(items));
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items));
                }
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items));
                }
                b'd' => {
                    let items = self.pop_mark()?;
                    let entries = self.pairs(items)?;
                    self.push(Node::Dict(entries));
                }
                b'a' => {
                    let items = self.take(1)?;
                    self.append(items)?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let items = self.take(2)?;
                    self.set_items(items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                b'q' => {
                    let [key] = self.array()?;
                    self.memoize(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.memoize(key.into())?;
                }
                0x94 => self.memoize(self.memo.len() as u64)?,
                b'h' => {
                    let [key] = self.array()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key.into())?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let parts = self.take(2)?;
                    let text = |id| match self.get(id) {
                        Node::Str(text) => Ok(text.clone()),
                        _ => Err(self.damaged("a name that is no string")),
                    };
                    let (module, name) = (text(parts[0])?, text(parts[1])?);
                    self.global(&module, &name)?;
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                0x81 => self.new_object()?,
                b'b' => self.build()?,
                _ => return Err(PickleError::Opcode { code, at }),
            }
        }
    }

    pub fn damaged(&self, reason: &'static str) -> PickleError {
        PickleError::Damaged { at: self.at, reason }
    }

    fn slice(&mut self, length: u64) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
        let length = length.ok_or(PickleError::Truncated(self.bytes.len()))?;
        self.at += length;
        Ok(&rest[..length])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let slice = self.slice(N as u64)?;
        slice.try_into().map_err(|_| PickleError::Truncated(self.at))
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or(PickleError::Truncated(self.bytes.len()))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.damaged("text that is not UTF-8"))
    }

    pub fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn push(&mut self, node: Node) {
        self.stack.push(NodeId(self.nodes.len() as u32));
        self.nodes.push(node);
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub fn pop(&mut self) -> Step<NodeId> {
        if self.stack.len() <= self.floor() {
            return Err(self.damaged("empty stack"));
        }
        self.stack.pop().ok_or_else(|| self.damaged("empty stack"))
    }

    pub fn take(&mut self, count: usize) -> Step<Vec<NodeId>> {
        let start = self.stack.len().checked_sub(count).filter(|start| *start >= self.floor());
        let start = start.ok_or_else(|| self.damaged("too few objects on the stack"))?;
        Ok(self.stack.split_off(start))
    }

    fn pop_mark(&mut self) -> Step<Vec<NodeId>> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn pairs(&self, items: Vec<NodeId>) -> Step<Vec<(NodeId, NodeId)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.damaged("a key without a value"));
        }
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    }

    fn append(&mut self, items: Vec<NodeId>) -> Step {
        let error = self.damaged("items for something that is no list");
        match self.stack.last().map(|id| &mut self.nodes[id.0 as usize]) {
            Some(Node::List(list)) => list.extend(items),
            _ => return Err(error),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<NodeId>) -> Step {
        let entries = self.pairs(items)?;
        let error = self.damaged("items for something that is no dict");
        match self.stack.last().map(|id| &mut self.nodes[id.0 as usize]) {
            Some(Node::Dict(dict)) => dict.extend(entries),
            _ => return Err(error),
        }
        Ok(())
    }

    fn new_object(&mut self) -> Step {
        let parts = self.take(2)?;
        match self.get(parts[0]) {
            Node::Global(SCRIPT) => self.push(Node::Object(None)),
            _ => return Err(self.damaged("an object of a class that is not TorchScript's")),
        }
        Ok(())
    }

    /// Gives a TorchScript object its attributes; what other objects get is of no use here.
    fn build(&mut self) -> Step {
        let state = self.pop()?;
        if let Some(Node::Object(attributes)) =
            self.stack.last().map(|id| &mut self.nodes[id.0 as usize])
        {
            *attributes = Some(state);
        }
        Ok(())
    }

    fn memoize(&mut self, key: u64) -> Step {
        let top = *self.stack.last().ok_or_else(|| self.damaged("empty stack"))?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step {
        let id = self.memo.get(&key).copied();
        self.stack.push(id.ok_or_else(|| self.damaged("an object that was never stored"))?);
        Ok(())
    }

    fn string(&mut self, length: u64) -> Step {
        let bytes = self.slice(length)?;
        // Python writes lone surrogates; no key or name of a checkpoint has one.
        self.push(Node::Str(String::from_utf8_lossy(bytes).into_owned()));
        Ok(())
    }

    fn binary(&mut self, length: u64) -> Step {
        let bytes = self.slice(length)?.to_vec();
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    fn long(&mut self) -> Step {
        let [length] = self.array()?;
        let bytes = self.slice(length.into())?;
        if bytes.len() > 8 {
            return Err(self.damaged("an integer of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(value)));
        Ok(())
    }

    fn text_int(&mut self) -> Step {
        let node = match self.line()? {
            "00" => Node::Bool(false),
            "01" => Node::Bool(true),
            text => match text.trim_end_matches('L').parse() {
                Ok(value) => Node::Int(value),
                Err(_) => return Err(self.damaged("an integer that is no 64-bit number")),
            },
        };
        self.push(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_globals_are_refused_by_name() {
        let error = parse(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap_err();
        assert_eq!(error, PickleError::Global("posix.system".into()));
    }

    #[test]
    fn absurd_lengths_do_not_allocate() {
        let error = parse(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f").unwrap_err();
        assert!(matches!(error, PickleError::Truncated(_)));
        assert!(matches!(parse(b"\x80\x02("), Err(PickleError::Truncated(_))));
        assert!(matches!(parse(b"\x80\x02\x85."), Err(PickleError::Damaged { .. })));
        assert!(matches!(parse(b"i"), Err(PickleError::Opcode { .. })));
    }

    #[test]
    fn objects_are_limited() {
        for code in [b")".as_slice(), b"(", b"N\x94"] {
            let error = parse(&code.repeat(MAX_OBJECTS + 1)).unwrap_err();
            assert!(matches!(error, PickleError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn shared_containers_are_filled_wherever_they_are() {
        // d = {}; [d, d] with an entry added to the second mention.
        let pickle = parse(b"\x80\x02](}q\x00h\x00K\x01K\x02se.").unwrap();
        let items = pickle.items(pickle.root()).unwrap();
        assert_eq!(items[0], items[1]);
        assert_eq!(pickle.entries(items[0]).unwrap().len(), 1);
    }

    #[test]
    fn deep_nesting_is_only_data() {
        let mut bytes = vec![b']'; 200_000];
        bytes.extend(vec![b'a'; 199_999]);
        bytes.push(b'.');
        assert!(parse(&bytes).is_ok());
    }
}
