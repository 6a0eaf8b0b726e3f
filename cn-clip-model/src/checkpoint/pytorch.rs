//! Files of `torch.save` and `torch.jit.save`: a zip archive with a pickle and one entry per
//! storage.

use std::{
    collections::HashMap,
    io::{BufReader, Read},
    sync::Arc,
};

use zip::{CompressionMethod, ZipArchive};

use super::{
    optimizer,
    pickle::{Node, NodeId, Pickle, parse},
    source::Source,
    state_dict::{Checkpoint, Progress},
    tensor::{Data, LazyTensor, Stored},
};
use crate::ModelError;

/// Largest pickle that is read, in bytes. That of ViT-H-14 with optimizer state has 0.5 MB.
const MAX_PICKLE: u64 = 64 << 20;
/// Most attributes of a TorchScript module, and longest path of one. CLIP has some thousands.
const MAX_SCRIPT_OBJECTS: usize = 1 << 18;
const MAX_SCRIPT_PATH: usize = 1 << 10;

/// An opened archive: its pickle, and where each storage lies in the file.
pub(crate) struct Archive {
    pub pickle: Pickle,
    source: Arc<Source>,
    storages: HashMap<String, Storage>,
}

/// Where a storage lies in the file.
#[derive(Clone, Copy)]
struct Storage {
    start: u64,
    length: u64,
    crc: u32,
}

impl Archive {
    fn open(source: &Arc<Source>) -> Result<Self, ModelError> {
        let damaged = |error: zip::result::ZipError| {
            source.damaged(format!("damaged or truncated zip archive ({error})"))
        };
        let mut zip = ZipArchive::new(BufReader::new(source.reader()?)).map_err(damaged)?;
        let root = zip
            .file_names()
            .filter_map(Result::ok)
            .find_map(|name| name.strip_suffix("data.pkl").map(str::to_string));
        let root = root.ok_or_else(|| {
            source.damaged("a zip archive without data.pkl: not a PyTorch checkpoint")
        })?;
        let mut pickle = Vec::new();
        let entry = zip.by_name(&format!("{root}data.pkl")).map_err(damaged)?;
        entry
            .take(MAX_PICKLE + 1)
            .read_to_end(&mut pickle)
            .map_err(ModelError::io(&source.path))?;
        if pickle.len() as u64 > MAX_PICKLE {
            return Err(source.damaged(format!("its pickle is larger than {MAX_PICKLE} bytes")));
        }
        let mut order = Vec::new();
        if let Ok(entry) = zip.by_name(&format!("{root}byteorder")) {
            entry.take(8).read_to_end(&mut order).map_err(ModelError::io(&source.path))?;
        }
        if order == b"big" {
            return Err(source.damaged("written on a big-endian machine: save it again on another"));
        }
        let prefix = format!("{root}data/");
        let mut storages = HashMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            let Some(key) = name.strip_prefix(&prefix) else { continue };
            if entry.compression() != CompressionMethod::Stored {
                return Err(source.damaged(format!("entry data/{key} is compressed")));
            }
            let start = entry
                .data_start()
                .ok_or_else(|| source.damaged(format!("entry data/{key} has no position")))?;
            let storage = Storage { start, length: entry.size(), crc: entry.crc32() };
            storages.insert(key.to_string(), storage);
        }
        let pickle = parse(&pickle).map_err(|error| source.damaged(error.to_string()))?;
        Ok(Self { pickle, source: source.clone(), storages })
    }

    /// The tensor of a node; `None` if it is something else.
    pub fn tensor(&self, id: NodeId) -> Result<Option<LazyTensor>, ModelError> {
        let Node::Tensor { storage, offset, shape, strides } = self.pickle.node(id) else {
            return Ok(None);
        };
        let Node::Storage { element, key, .. } = self.pickle.node(*storage) else {
            return Ok(None);
        };
        let Storage { start, length, crc } = *self
            .storages
            .get(key)
            .ok_or_else(|| self.source.damaged(format!("storage data/{key} is missing")))?;
        let skip = offset.checked_mul(element.size() as u64).filter(|skip| *skip <= length);
        let skip = skip.ok_or_else(|| {
            self.source.damaged(format!("a tensor begins beyond its storage data/{key}"))
        })?;
        let data = Data::Stored(Stored {
            source: self.source.clone(),
            offset: start + skip,
            length: length - skip,
            strides: (!is_contiguous(shape, strides)).then(|| strides.clone()),
            // PyTorch can be told to leave it out; then it is 0.
            crc: (skip == 0 && crc != 0).then_some(crc),
        });
        Ok(Some(LazyTensor { element: *element, shape: shape.clone(), data }))
    }
}

impl Archive {
    fn state_dict(&self, dict: NodeId) -> Result<Vec<(String, LazyTensor)>, ModelError> {
        let entries = self.pickle.entries(dict).ok_or_else(|| {
            self.source.damaged("holds no dictionary of weights: not a checkpoint of a model")
        })?;
        let mut state_dict = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if let (Some(key), Some(tensor)) = (self.pickle.str(*key), self.tensor(*value)?) {
                state_dict.push((key.to_string(), tensor));
            }
        }
        Ok(state_dict)
    }

    /// The tensors of a TorchScript module, under the path of their attributes.
    fn script(&self) -> Result<Vec<(String, LazyTensor)>, ModelError> {
        let mut state_dict = Vec::new();
        let mut open = vec![(String::new(), self.pickle.root())];
        let mut left = MAX_SCRIPT_OBJECTS;
        while let Some((path, id)) = open.pop() {
            if let Some(tensor) = self.tensor(id)? {
                state_dict.push((path, tensor));
                continue;
            }
            let Node::Object(Some(state)) = self.pickle.node(id) else { continue };
            let attributes = self.pickle.entries(*state).unwrap_or_default();
            left = left
                .checked_sub(attributes.len())
                .filter(|_| path.len() < MAX_SCRIPT_PATH)
                .ok_or_else(|| self.source.damaged("its modules contain themselves"))?;
            for (name, value) in attributes.iter().rev() {
                let Some(name) = self.pickle.str(*name) else { continue };
                let dot = if path.is_empty() { "" } else { "." };
                open.push((format!("{path}{dot}{name}"), *value));
            }
        }
        Ok(state_dict)
    }
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (size, stride) in shape.iter().zip(strides).rev() {
        if *size != 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*size);
    }
    true
}

pub(super) fn open(source: &Arc<Source>) -> Result<Checkpoint, ModelError> {
    let archive = Archive::open(source)?;
    let pickle = &archive.pickle;
    let root = pickle.root();
    let state_dict = match pickle.node(root) {
        Node::Object(_) => archive.script()?,
        _ => archive.state_dict(pickle.get(root, "state_dict").unwrap_or(root))?,
    };
    if state_dict.is_empty() {
        return Err(source.damaged("holds no tensors: not a checkpoint of a model"));
    }
    let number = |at: NodeId, key: &str| {
        pickle
            .get(at, key)
            .and_then(|id| pickle.int(id))
            .and_then(|value| u64::try_from(value).ok())
    };
    let own = pickle.get(root, "cn_clip");
    let progress = Progress {
        epoch: number(root, "epoch").unwrap_or(0),
        step: number(root, "step").unwrap_or(0),
        name: pickle
            .get(root, "name")
            .and_then(|id| pickle.str(id))
            .unwrap_or_default()
            .to_string(),
        epoch_pairs: own.and_then(|own| number(own, "epoch_pairs")),
        loss_scale: own.and_then(|own| {
            Some((number(own, "loss_scale")?, number(own, "loss_scale_steps").unwrap_or(0)))
        }),
    };
    let optimizer = match pickle.get(root, "optimizer") {
        Some(id) => Some(optimizer::read(&archive, id, source)?),
        None => None,
    };
    let name = source.path.display().to_string();
    Ok(Checkpoint { name, state_dict, progress, optimizer, config: None })
}
