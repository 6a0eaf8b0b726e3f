//! Pages of an LMDB file, version 1 of the format, little-endian.
//!
//! Nothing of a page is trusted: what does not fit is [`Damaged`].

use std::cmp::Ordering;

/// Bytes of a page header.
pub const HEADER: usize = 16;
/// Bytes of a node before its key.
const NODE: usize = 8;
/// Flags of a page.
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const LEAF_WITHOUT_NODES: u16 = 0x20;
/// Flags of a node: the value lies on pages of its own; it is a database or several values.
const BIG: u16 = 0x01;
const NOT_ONE_VALUE: u16 = 0x06;

/// Something in the file that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// Number of a page.
pub type PageNumber = u64;

/// What a page of the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Keys and the pages below them.
    Branch,
    /// Keys and values.
    Leaf,
}

/// A page of the tree, checked as far as its header goes.
pub struct Page {
    bytes: Vec<u8>,
    kind: Kind,
    count: usize,
}

/// A value in a leaf.
pub enum Value<'a> {
    /// It lies here.
    Here(&'a [u8]),
    /// It lies on overflow pages from this one on.
    Overflow {
        /// First of them.
        page: PageNumber,
        /// Bytes of the value.
        length: u64,
    },
}

impl Page {
    /// A branch or leaf.
    pub fn new(bytes: Vec<u8>, number: PageNumber) -> Result<Self, Damaged> {
        let flags = check_number(&bytes, number)?;
        let kind = match flags & (BRANCH | LEAF | OVERFLOW | LEAF_WITHOUT_NODES) {
            BRANCH => Kind::Branch,
            LEAF => Kind::Leaf,
            _ => return Err(Damaged),
        };
        let lower = usize::from(u16_at(&bytes, 12)?);
        if lower < HEADER || lower > bytes.len() {
            return Err(Damaged);
        }
        Ok(Self { bytes, kind, count: (lower - HEADER) / 2 })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of its nodes.
    pub fn count(&self) -> usize {
        self.count
    }

    fn node(&self, index: usize) -> Result<&[u8], Damaged> {
        let at = usize::from(u16_at(&self.bytes, HEADER + 2 * index)?);
        if index >= self.count || at < HEADER {
            return Err(Damaged);
        }
        self.bytes.get(at..).filter(|node| node.len() >= NODE).ok_or(Damaged)
    }

    /// Key of a node.
    pub fn key(&self, index: usize) -> Result<&[u8], Damaged> {
        let node = self.node(index)?;
        let length = usize::from(u16_at(node, 6)?);
        node.get(NODE..NODE + length).ok_or(Damaged)
    }

    /// Page below a node of a branch.
    pub fn child(&self, index: usize) -> Result<PageNumber, Damaged> {
        let node = self.node(index)?;
        Ok(u64::from(u32_at(node, 0)?) | u64::from(u16_at(node, 4)?) << 32)
    }

    /// Value of a node of a leaf.
    pub fn value(&self, index: usize) -> Result<Value<'_>, Damaged> {
        let node = self.node(index)?;
        let (length, flags) = (u32_at(node, 0)?, u16_at(node, 4)?);
        let start = NODE + self.key(index)?.len();
        match flags {
            flags if flags & NOT_ONE_VALUE != 0 => Err(Damaged),
            flags if flags & BIG != 0 => {
                Ok(Value::Overflow { page: u64_at(node, start)?, length: length.into() })
            }
            _ => node.get(start..start + length as usize).map(Value::Here).ok_or(Damaged),
        }
    }

    /// Node of a branch below which `key` lies if it is there.
    pub fn descend(&self, key: &[u8]) -> Result<usize, Damaged> {
        // The first key of a branch stands for all that are smaller than the second.
        match self.search(1, key)? {
            Ok(index) => Ok(index),
            Err(index) => Ok(index.saturating_sub(1)),
        }
    }

    /// Node of a leaf that has this key.
    pub fn find(&self, key: &[u8]) -> Result<Option<usize>, Damaged> {
        Ok(self.search(0, key)?.ok())
    }

    /// Binary search from node `first` on: the node with the key, or the place for it.
    fn search(&self, first: usize, key: &[u8]) -> Result<Result<usize, usize>, Damaged> {
        let (mut low, mut high) = (first, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle)?.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Ok(middle)),
            }
        }
        Ok(Err(low))
    }
}

/// Checks the header of a run of overflow pages.
pub fn check_overflow(header: &[u8], number: PageNumber) -> Result<(), Damaged> {
    match check_number(header, number)? & OVERFLOW {
        0 => Err(Damaged),
        _ => Ok(()),
    }
}

/// Flags of a page that knows its own number.
fn check_number(bytes: &[u8], number: PageNumber) -> Result<u16, Damaged> {
    if u64_at(bytes, 0)? != number {
        return Err(Damaged);
    }
    u16_at(bytes, 10)
}

/// A little-endian number at an offset.
pub fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Damaged> {
    Ok(u16::from_le_bytes(array(bytes, at)?))
}

/// A little-endian number at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Damaged> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

/// A little-endian number at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Damaged> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Damaged> {
    let end = at.checked_add(N).ok_or(Damaged)?;
    bytes.get(at..end).and_then(|part| part.try_into().ok()).ok_or(Damaged)
}
