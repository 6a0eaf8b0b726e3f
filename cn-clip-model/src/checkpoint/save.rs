//! Writing of official `.pt` files, atomically.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::Path,
};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{FloatDType, Tensor},
};
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{
    keys::{Layout, ParamSpec, parameters},
    load::to_official_layout,
    optimizer::reference_order,
    pickle::{PickleWriter, Storage},
    state_dict::Progress,
    tensor::ElementType,
};
use crate::{Clip, ModelError};

/// Alignment of storages in the archive, as `torch.save` has it.
const ALIGNMENT: u16 = 64;
/// Entries at least this large get 64-bit sizes.
const LARGE: usize = 0xffff_0000;

/// AdamW state to be saved, in the layout of the module.
pub trait SaveOptimizer {
    /// Steps done for, and first and second moments of, a parameter; `None` if it is not trained.
    fn moments(&self, id: ParamId) -> Option<(u64, Vec<f32>, Vec<f32>)>;
    /// Whether [`moments`](Self::moments) has something for a parameter.
    fn contains(&self, id: ParamId) -> bool;
    /// Settings written into both parameter groups.
    fn settings(&self) -> AdamWSettings;
}

/// Hyper-parameters of a parameter group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Weight decay of the group that decays.
    pub weight_decay: f64,
}

/// Writes weights, progress and optimizer state to `path` in the official layout.
///
/// The file appears under its name only when it is whole and flushed; a failure leaves what was
/// there before.
pub fn save(
    path: &Path,
    model: &Clip,
    progress: &Progress,
    optimizer: Option<&dyn SaveOptimizer>,
) -> Result<(), ModelError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let failed = || ModelError::io(path);
    let temporary =
        tempfile::Builder::new().prefix(".checkpoint-").tempfile_in(parent).map_err(failed())?;
    write(temporary.as_file(), path, model, progress, optimizer).map_err(failed())?;
    temporary.as_file().sync_all().map_err(failed())?;
    temporary.persist(path).map_err(|error| error.error).map_err(failed())?;
    Ok(())
}

fn write(
    file: &File,
    path: &Path,
    model: &Clip,
    progress: &Progress,
    optimizer: Option<&dyn SaveOptimizer>,
) -> io::Result<()> {
    let specs = parameters(model);
    let mut plan = Plan::default();
    let pickle = describe(&specs, progress, optimizer, &mut plan);
    let root = path.file_stem().map_or("archive".into(), |stem| stem.to_string_lossy());
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, Sink { file, failed: false }));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let entry = |zip: &mut ZipWriter<_>, name: &str, bytes: &[u8]| -> io::Result<()> {
        let options = options.with_alignment(ALIGNMENT).large_file(bytes.len() >= LARGE);
        zip.start_file(format!("{root}/{name}"), options)?;
        zip.write_all(bytes)
    };
    entry(&mut zip, "data.pkl", &pickle)?;
    entry(&mut zip, "byteorder", b"little")?;
    let ids: HashMap<ParamId, &ParamSpec> = specs.iter().map(|spec| (spec.id, spec)).collect();
    for (key, item) in plan.items.iter().enumerate() {
        let spec = |id: &ParamId| {
            ids.get(id).copied().ok_or_else(|| io::Error::other("a parameter without a name"))
        };
        let moments = |id: &ParamId| {
            let moments = optimizer.and_then(|optimizer| optimizer.moments(*id));
            moments.ok_or_else(|| io::Error::other("a parameter without optimizer state"))
        };
        let bytes = match item {
            Item::Weight(id) => {
                let spec = spec(id)?;
                let values = to_official_layout(spec, values_of(model, *id)?);
                match spec.layout {
                    Layout::Counter => (values[0] as i64).to_le_bytes().to_vec(),
                    _ => to_bytes(&values),
                }
            }
            Item::Step(id) => to_bytes(&[moments(id)?.0 as f32]),
            Item::First(id) => to_bytes(&to_official_layout(spec(id)?, moments(id)?.1)),
            Item::Second(id) => to_bytes(&to_official_layout(spec(id)?, moments(id)?.2)),
        };
        entry(&mut zip, &format!("data/{key}"), &bytes)?;
    }
    entry(&mut zip, "version", b"3\n")?;
    zip.finish()?.flush()
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
#[derive(Default)]
struct Plan {
    items: Vec<Item>,
}

enum Item {
    Weight(ParamId),
    Step(ParamId),
    First(ParamId),
    Second(ParamId),
}

impl Plan {
    fn add(&mut self, item: Item, element: ElementType, count: usize) -> Storage {
        self.items.push(item);
        Storage { key: (self.items.len() - 1).to_string(), element, count }
    }
}

fn describe(
    specs: &[ParamSpec],
    progress: &Progress,
    optimizer: Option<&dyn SaveOptimizer>,
    plan: &mut Plan,
) -> Vec<u8> {
    let mut writer = PickleWriter::default();
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
        writer.dict(|writer| {
            for spec in specs {
                let element = match spec.layout {
                    Layout::Counter => ElementType::I64,
                    _ => ElementType::F32,
                };
                writer.str(&format!("module.{}", spec.key));
                let storage = plan.add(Item::Weight(spec.id), element, spec.count());
                writer.tensor(&spec.official_shape(), &storage);
            }
        });
        if let Some(optimizer) = optimizer {
            writer.str("optimizer");
            describe_optimizer(writer, specs, optimizer, plan);
        }
    });
    writer.finish()
}

fn describe_optimizer(
    writer: &mut PickleWriter,
    specs: &[ParamSpec],
    optimizer: &dyn SaveOptimizer,
    plan: &mut Plan,
) {
    let trained: HashMap<&str, &ParamSpec> = specs
        .iter()
        .filter(|spec| optimizer.contains(spec.id))
        .map(|spec| (spec.key.as_str(), spec))
        .collect();
    let keys = specs.iter().map(|spec| spec.key.as_str()).filter(|key| trained.contains_key(key));
    let order = reference_order(keys);
    let no_decay = order.iter().filter(|key| super::optimizer::reference_no_decay(key)).count();
    let settings = optimizer.settings();
    writer.dict(|writer| {
        writer.str("state");
        writer.dict(|writer| {
            for (index, key) in order.iter().enumerate() {
                let spec = trained[key];
                let (count, shape) = (spec.count(), spec.official_shape());
                writer.int(index as i64);
                writer.dict(|writer| {
                    let mut tensor = |name: &str, item: Item, count: usize, shape: &[usize]| {
                        writer.str(name);
                        let storage = plan.add(item, ElementType::F32, count);
                        writer.tensor(shape, &storage);
                    };
                    tensor("step", Item::Step(spec.id), 1, &[]);
                    tensor("exp_avg", Item::First(spec.id), count, &shape);
                    tensor("exp_avg_sq", Item::Second(spec.id), count, &shape);
                });
            }
        });
        writer.str("param_groups");
        writer.list(|writer| {
            for (range, decay) in
                [(0..no_decay, 0.0), (no_decay..order.len(), settings.weight_decay)]
            {
                writer.dict(|writer| {
                    writer.str("weight_decay");
                    writer.float(decay);
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
        });
    });
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Values of one parameter, as fp32 in the layout of the module.
fn values_of(model: &Clip, id: ParamId) -> io::Result<Vec<f32>> {
    struct Finder {
        id: ParamId,
        values: Option<Vec<f32>>,
    }
    impl ModuleVisitor for Finder {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.id == self.id {
                let data = param.val().cast(FloatDType::F32).into_data();
                self.values = data.try_into_vec().ok();
            }
        }
    }
    let mut finder = Finder { id, values: None };
    model.visit(&mut finder);
    finder.values.ok_or_else(|| io::Error::other("the values of a parameter cannot be read"))
}
