//! The official `.pt` form: a pickle that describes tensors, and their bytes, in a zip archive.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
};

use zip::{ZipWriter, write::SimpleFileOptions};

use super::{
    pickle::{PickleWriter, Storage},
    save::AdamWSettings,
    state_dict::Progress,
    tensor::ElementType,
};
use crate::ModelError;

/// Alignment of storages in the archive, as `torch.save` has it.
const ALIGNMENT: u16 = 64;
/// Entries at least this large get 64-bit sizes.
const LARGE: usize = 0xffff_0000;

/// A weight to be described; `item` is what [`write`] is asked for.
pub(super) struct Weight<T> {
    pub key: String,
    pub element: ElementType,
    pub shape: Vec<usize>,
    pub item: T,
}

/// The optimizer state of a parameter to be described.
pub(super) struct StateOf<T> {
    /// Index that torch gives the parameter.
    pub index: usize,
    /// Official shape.
    pub shape: Vec<usize>,
    pub step: T,
    pub first: T,
    pub second: T,
}

/// Optimizer state to be described.
pub(super) struct Optimizer<T> {
    pub states: Vec<StateOf<T>>,
    /// Parameters without decay, which have the first indices, and all parameters.
    pub no_decay: usize,
    pub count: usize,
    pub settings: AdamWSettings,
}

/// The pickle of a training checkpoint, and the items in the order of their storages.
pub(super) fn describe<T>(
    progress: &Progress,
    weights: Vec<Weight<T>>,
    optimizer: Option<Optimizer<T>>,
) -> (Vec<u8>, Vec<T>) {
    let mut writer = PickleWriter::default();
    let mut plan = Plan { items: Vec::new() };
    writer.dict(|writer| {
        writer.str("epoch");
        writer.int(progress.epoch as i64);
        writer.str("step");
        writer.int(progress.step as i64);
        writer.str("name");
        writer.str(&progress.name);
        let own = [
            ("epoch_pairs", progress.epoch_pairs),
            ("loss_scale", progress.loss_scale.map(|(factor, _)| factor)),
            ("loss_scale_steps", progress.loss_scale.map(|(_, steps)| steps)),
        ];
        if own.iter().any(|(_, value)| value.is_some()) {
            writer.str("cn_clip");
            writer.dict(|writer| {
                for (name, value) in own {
                    let Some(value) = value else { continue };
                    writer.str(name);
                    writer.int(value as i64);
                }
            });
        }
        writer.str("state_dict");
        describe_weights(writer, weights, &mut plan);
        if let Some(optimizer) = optimizer {
            writer.str("optimizer");
            describe_optimizer(writer, optimizer, &mut plan);
        }
    });
    (writer.finish(), plan.items)
}

/// The pickle of a plain state dict.
pub(super) fn describe_plain<T>(weights: Vec<Weight<T>>) -> (Vec<u8>, Vec<T>) {
    let mut writer = PickleWriter::default();
    let mut plan = Plan { items: Vec::new() };
    describe_weights(&mut writer, weights, &mut plan);
    (writer.finish(), plan.items)
}

/// Writes the archive. `bytes` gives those of the storage of that number.
pub(super) fn write(
    file: &File,
    path: &Path,
    pickle: &[u8],
    count: usize,
    mut bytes: impl FnMut(usize) -> Result<Vec<u8>, ModelError>,
) -> Result<(), ModelError> {
    let failed = |error: io::Error| ModelError::io(path)(error);
    let root = path.file_stem().map_or("archive".into(), |stem| stem.to_string_lossy());
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, Sink { file, failed: false }));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let entry = |zip: &mut ZipWriter<_>, name: &str, bytes: &[u8]| -> io::Result<()> {
        let options = options.with_alignment(ALIGNMENT).large_file(bytes.len() >= LARGE);
        zip.start_file(format!("{root}/{name}"), options)?;
        zip.write_all(bytes)
    };
    entry(&mut zip, "data.pkl", pickle).map_err(failed)?;
    entry(&mut zip, "byteorder", b"little").map_err(failed)?;
    for key in 0..count {
        entry(&mut zip, &format!("data/{key}"), &bytes(key)?).map_err(failed)?;
    }
    entry(&mut zip, "version", b"3\n").map_err(failed)?;
    zip.finish().map_err(io::Error::from).and_then(|mut out| out.flush()).map_err(failed)
}

/// A file that reports its first error and then swallows what is written: `ZipWriter` tries to end
/// the archive when it is dropped, and prints to standard error when it cannot.
struct Sink<'a> {
    file: &'a File,
    failed: bool,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Ok(bytes.len());
        }
        let written = self.file.write(bytes);
        let error = written.as_ref().err();
        self.failed = error.is_some_and(|error| error.kind() != io::ErrorKind::Interrupted);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Sink<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// What each storage holds, in order of their keys.
struct Plan<T> {
    items: Vec<T>,
}

impl<T> Plan<T> {
    fn tensor(
        &mut self,
        writer: &mut PickleWriter,
        element: ElementType,
        shape: &[usize],
        item: T,
    ) {
        let storage =
            Storage { key: self.items.len().to_string(), element, count: shape.iter().product() };
        self.items.push(item);
        writer.tensor(shape, &storage);
    }
}

fn describe_weights<T>(writer: &mut PickleWriter, weights: Vec<Weight<T>>, plan: &mut Plan<T>) {
    writer.dict(|writer| {
        for weight in weights {
            writer.str(&weight.key);
            plan.tensor(writer, weight.element, &weight.shape, weight.item);
        }
    });
}

fn describe_optimizer<T>(writer: &mut PickleWriter, optimizer: Optimizer<T>, plan: &mut Plan<T>) {
    let Optimizer { states, no_decay, count, settings } = optimizer;
    writer.dict(|writer| {
        writer.str("state");
        writer.dict(|writer| {
            for state in states {
                writer.int(state.index as i64);
                writer.dict(|writer| {
                    writer.str("step");
                    plan.tensor(writer, ElementType::F32, &[], state.step);
                    writer.str("exp_avg");
                    plan.tensor(writer, ElementType::F32, &state.shape, state.first);
                    writer.str("exp_avg_sq");
                    plan.tensor(writer, ElementType::F32, &state.shape, state.second);
                });
            }
        });
        writer.str("param_groups");
        writer.list(|writer| {
            describe_group(writer, 0..no_decay, &AdamWSettings { weight_decay: 0.0, ..settings });
            describe_group(writer, no_decay..count, &settings);
        });
    });
}

fn describe_group(writer: &mut PickleWriter, range: Range<usize>, settings: &AdamWSettings) {
    writer.dict(|writer| {
        writer.str("weight_decay");
        writer.float(settings.weight_decay);
        writer.str("lr");
        writer.float(settings.learning_rate);
        writer.str("betas");
        writer.tuple(|writer| {
            writer.float(settings.beta1);
            writer.float(settings.beta2);
        });
        writer.str("eps");
        writer.float(settings.epsilon);
        for flag in ["amsgrad", "maximize", "capturable", "differentiable"] {
            writer.str(flag);
            writer.bool(false);
        }
        for unset in ["foreach", "fused"] {
            writer.str(unset);
            writer.none();
        }
        writer.str("params");
        writer.list(|writer| range.for_each(|index| writer.int(index as i64)));
    });
}
