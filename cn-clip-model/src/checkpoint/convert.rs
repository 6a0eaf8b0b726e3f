//! Conversion of checkpoints, one tensor at a time.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::tensor::Device;

use super::{
    archive::{self, Optimizer, StateOf, Weight},
    burnpack, detect_config,
    export::{Export, View},
    format::{Dtype, Format},
    huggingface::{self, Part},
    huggingface_config,
    keys::{Layout, ParamSpec, parameters},
    load::{compare, grids},
    metadata, names,
    optimizer::OptimizerState,
    output, safetensors,
    state_dict::Checkpoint,
    tensor::{ElementType, LazyTensor},
};
use crate::{Clip, ClipConfig, ModelError};

/// Told of the bytes of weights written and of those to be written.
pub type ProgressFn = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// What [`convert`] makes.
#[derive(Clone)]
pub struct ConvertOptions {
    /// Form of the output.
    pub format: Format,
    /// Architecture; told by [`detect_config`] if not given. A positional embedding of another
    /// resolution is resized to that of the configuration.
    pub config: Option<ClipConfig>,
    /// Type of the weights; if not given, that of the input, and fp32 for records of Burn. In
    /// official and safetensors files, half precision leaves in fp32 what the Python program does:
    /// norms and positional and class embeddings of the image tower, and the logit scale.
    pub dtype: Option<Dtype>,
    /// Whether an output that exists is replaced.
    pub force: bool,
    /// Text of the `vocab.txt` of a Hugging Face folder, which has no tokenizer without.
    pub vocabulary: Option<String>,
    /// Told of progress.
    pub progress: Option<ProgressFn>,
}

impl ConvertOptions {
    /// Detects the architecture, keeps the type and replaces nothing.
    pub fn new(format: Format) -> Self {
        Self { format, config: None, dtype: None, force: false, vocabulary: None, progress: None }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Architecture; `None` of a tower alone.
    pub config: Option<ClipConfig>,
    /// Number of weights.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether the input has optimizer state that the output has not.
    pub optimizer_left_out: bool,
}

/// Writes the checkpoint `input`, of any form that [`Checkpoint::open`] reads, to `output`.
///
/// Holds one tensor in memory at a time. The output appears under its name only when it is whole.
/// An image tower alone (OpenAI's models) or a text tower alone becomes a plain state dict, as
/// initial weights of a tower are.
///
/// # Errors
/// When the input is damaged, does not fit the configuration or has no such form, when the output
/// exists and is not to be replaced, and when it cannot be written.
pub fn convert(
    input: &Path,
    output: &Path,
    options: &ConvertOptions,
) -> Result<Converted, ModelError> {
    let checkpoint = Checkpoint::open(input)?;
    check_output(input, output, options)?;
    let job = match checkpoint.is_whole() {
        true => Job::whole(&checkpoint, options)?,
        false => Job::tower(&checkpoint, options)?,
    };
    let converted = Converted {
        config: job.config.clone(),
        tensors: job.exports.len(),
        bytes: job.exports.iter().map(|export| export.byte_count() as u64).sum(),
        optimizer_left_out: checkpoint.optimizer.is_some() && job.optimizer.is_none(),
    };
    job.run(&checkpoint, output, options)?;
    Ok(converted)
}

fn check_output(input: &Path, output: &Path, options: &ConvertOptions) -> Result<(), ModelError> {
    let Ok(real) = fs::canonicalize(output) else { return Ok(()) };
    if fs::canonicalize(input).is_ok_and(|input| input == real) {
        return Err(ModelError::format(output, "is the input: name another output"));
    }
    let folder = options.format == Format::HuggingFace;
    match (real.is_dir(), folder) {
        (true, false) => Err(ModelError::format(output, "is a folder: name a file")),
        (false, true) => Err(ModelError::format(output, "is a file: name a folder")),
        (true, true) if fs::read_dir(&real).is_ok_and(|mut files| files.next().is_none()) => Ok(()),
        _ if options.force => Ok(()),
        _ => Err(ModelError::Exists { path: output.to_path_buf() }),
    }
}

/// Everything that is to be written.
struct Job {
    config: Option<ClipConfig>,
    exports: Vec<Export>,
    optimizer: Option<OptimizerState>,
}

impl Job {
    fn whole(checkpoint: &Checkpoint, options: &ConvertOptions) -> Result<Self, ModelError> {
        let config = match &options.config {
            Some(config) => config.clone(),
            None => detect_config(checkpoint)?,
        };
        config.validate()?;
        let specs = parameters(&Clip::init(&config, &Device::default(), 0));
        let mut exports = Vec::with_capacity(specs.len());
        for (spec, tensor) in compare(&specs, checkpoint, true)? {
            exports.extend(exports_of(spec, tensor, options));
        }
        if options.format == Format::HuggingFace && config.vision.patch_size.is_none() {
            return Err(ModelError::format(
                &checkpoint.name,
                "a ResNet, for which the transformers library has no model: convert it to burn, \
                 safetensors or official",
            ));
        }
        // Moments are of the shape of their parameter.
        let resized = exports.iter().any(|export| matches!(export.view, View::Grid(..)));
        let keep = options.format == Format::Official && !resized;
        let optimizer =
            checkpoint.optimizer.clone().filter(|state| keep && state.group_sizes.len() == 2);
        Ok(Self { config: Some(config), exports, optimizer })
    }

    fn tower(checkpoint: &Checkpoint, options: &ConvertOptions) -> Result<Self, ModelError> {
        if matches!(options.format, Format::Burn | Format::HuggingFace) {
            return Err(ModelError::format(
                &checkpoint.name,
                format!("holds no whole model, which the form {} needs", options.format),
            ));
        }
        let export = |(key, tensor): &(String, LazyTensor)| Export {
            key: key.clone(),
            shape: tensor.shape.clone(),
            element: element_of(key, tensor.element, options),
            tensor: tensor.clone(),
            view: View::Same,
        };
        let exports = checkpoint.state_dict.iter().map(export).collect();
        Ok(Self { config: None, exports, optimizer: None })
    }

    fn run(
        self,
        checkpoint: &Checkpoint,
        output: &Path,
        options: &ConvertOptions,
    ) -> Result<(), ModelError> {
        let total = self.exports.iter().map(|export| export.byte_count() as u64).sum();
        let (progress, done) = (options.progress.clone(), AtomicU64::new(0));
        let written = move |bytes: u64| {
            if let Some(progress) = &progress {
                progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
            }
        };
        let metadata = metadata::entries(&checkpoint.progress, self.config.as_ref());
        match options.format {
            Format::Burn => output::file(output, |_, temporary| {
                burnpack::write(temporary, self.exports, metadata, written)
            }),
            Format::Safetensors => output::file(output, |file, _| {
                let metadata = metadata.into_iter().collect();
                let mut out = BufWriter::new(file);
                let failed = |error| ModelError::io(output)(error);
                safetensors::write(&mut out, self.exports, metadata, failed, written)?;
                out.flush().map_err(ModelError::io(output))
            }),
            Format::HuggingFace => {
                output::folder(output, |folder| self.write_folder(folder, output, options, written))
            }
            Format::Official => output::file(output, |file, _| {
                self.write_official(checkpoint, file, output, written)
            }),
        }
    }

    fn write_folder(
        self,
        folder: &Path,
        output: &Path,
        options: &ConvertOptions,
        written: impl Fn(u64),
    ) -> Result<(), ModelError> {
        let failed = |error| ModelError::io(output)(error);
        let half = self.exports.iter().map(|export| export.element).find(|e| e.size() == 2);
        let dtype = match half {
            Some(ElementType::F16) => "float16",
            Some(_) => "bfloat16",
            None => "float32",
        };
        let vocabulary = options.vocabulary.as_deref();
        let files = self.config.and_then(|c| huggingface_config::files(&c, dtype, vocabulary));
        for (name, text) in files.unwrap_or_default() {
            fs::write(folder.join(name), text).map_err(failed)?;
        }
        let file = fs::File::create(folder.join("model.safetensors")).map_err(failed)?;
        let mut out = BufWriter::new(file);
        let metadata = [("format".to_string(), "pt".to_string())].into();
        safetensors::write(&mut out, self.exports, metadata, failed, written)?;
        out.flush().map_err(failed)
    }

    fn write_official(
        self,
        checkpoint: &Checkpoint,
        file: &fs::File,
        output: &Path,
        written: impl Fn(u64),
    ) -> Result<(), ModelError> {
        let whole = self.config.is_some();
        let weights = self.exports.into_iter().map(|export| Weight {
            key: if whole { format!("module.{}", export.key) } else { export.key.clone() },
            element: export.element,
            shape: export.shape.clone(),
            item: Item::Tensor(export),
        });
        let (pickle, items) = match whole {
            true => {
                let optimizer = self.optimizer.map(optimizer_of);
                archive::describe(&checkpoint.progress, weights.collect(), optimizer)
            }
            false => archive::describe_plain(weights.collect()),
        };
        archive::write(file, output, &pickle, items.len(), |index| match &items[index] {
            Item::Tensor(export) => export.bytes().inspect(|bytes| written(bytes.len() as u64)),
            Item::Step(step) => Ok(step.to_le_bytes().to_vec()),
        })
    }
}

/// What a storage of an official file holds.
enum Item {
    Tensor(Export),
    Step(f32),
}

fn optimizer_of(state: OptimizerState) -> Optimizer<Item> {
    let moment = |tensor: LazyTensor| {
        let (key, shape) = (String::new(), tensor.shape.clone());
        Item::Tensor(Export { key, shape, element: ElementType::F32, tensor, view: View::Same })
    };
    Optimizer {
        no_decay: state.group_sizes[0],
        count: state.group_sizes.iter().sum(),
        settings: state.settings,
        states: state
            .moments
            .into_iter()
            .map(|(index, moments)| StateOf {
                index,
                shape: moments.first.shape.clone(),
                step: Item::Step(moments.step as f32),
                first: moment(moments.first),
                second: moment(moments.second),
            })
            .collect(),
    }
}

/// A parameter in the form of the output.
fn exports_of(spec: &ParamSpec, tensor: &LazyTensor, options: &ConvertOptions) -> Vec<Export> {
    let element = element_of(&spec.key, tensor.element, options);
    let export = |key: String, shape: Vec<usize>, view: View| Export {
        key,
        shape,
        element,
        tensor: tensor.clone(),
        view,
    };
    let official = spec.official_shape();
    let same = match grids(spec, tensor) {
        Some((old, new)) if old != new => View::Grid(old, new),
        _ => View::Same,
    };
    match options.format {
        Format::Official | Format::Safetensors => vec![export(spec.key.clone(), official, same)],
        Format::Burn => {
            let view = if spec.layout == Layout::Transposed { View::Transposed } else { same };
            vec![export(spec.path.clone(), spec.shape.clone(), view)]
        }
        Format::HuggingFace => huggingface::keys_of(&spec.key)
            .into_iter()
            .map(|(key, part)| match part {
                Part::Whole => export(key, official.clone(), same.clone()),
                Part::Transposed => {
                    export(key, official.iter().rev().copied().collect(), View::Transposed)
                }
                Part::Third(index) => {
                    let rows = official[0] / 3;
                    let shape = [&[rows], &official[1..]].concat();
                    export(key, shape, View::Rows(index * rows..(index + 1) * rows))
                }
            })
            .collect(),
    }
}

fn element_of(key: &str, source: ElementType, options: &ConvertOptions) -> ElementType {
    let official = matches!(options.format, Format::Official | Format::Safetensors);
    if !source.is_float() {
        // Counters of batches, which the module holds as floats.
        return if options.format == Format::Burn { ElementType::F32 } else { source };
    }
    let half = match options.dtype {
        Some(Dtype::Fp32) => return ElementType::F32,
        Some(Dtype::Fp16) => ElementType::F16,
        Some(Dtype::Bf16) => ElementType::Bf16,
        None if options.format == Format::Burn || source == ElementType::F64 => {
            return ElementType::F32;
        }
        None => return source,
    };
    if official && stays_fp32(key) { ElementType::F32 } else { half }
}

/// Whether the Python program keeps a weight in fp32 when it converts a model to fp16.
fn stays_fp32(key: &str) -> bool {
    let norm = [".ln_", ".bn", ".downsample.1."].iter().any(|part| key.contains(part));
    let embedding = ["class_embedding", "positional_embedding"];
    names::is_image_tower(key)
        && (norm || embedding.iter().any(|part| key.ends_with(part)) || key == "logit_scale")
}
