//! Official keys of the parameters of a model, and how each lies in official files.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};

use crate::Clip;

/// How a parameter lies in official files, compared with the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The same.
    Same,
    /// A linear layer's weight: `[output, input]` there, `[input, output]` here.
    Transposed,
    /// A 0-dimensional tensor there, `[1]` here.
    Scalar,
    /// The same as [`Layout::Scalar`], as a 64-bit integer.
    Counter,
}

/// A parameter or buffer of a model.
#[derive(Debug, Clone)]
pub struct ParamSpec {
    /// Official key, without `module.`.
    pub key: String,
    /// Path in the module, which is the key of Burn's records.
    pub path: String,
    /// Burn's identity of it.
    pub id: ParamId,
    /// Shape in the module.
    pub shape: Vec<usize>,
    /// How official files hold it.
    pub layout: Layout,
    /// Whether it is a buffer (batch norm statistics) and not trained.
    pub buffer: bool,
}

impl ParamSpec {
    /// Shape in official files.
    pub fn official_shape(&self) -> Vec<usize> {
        match self.layout {
            Layout::Same => self.shape.clone(),
            Layout::Transposed => self.shape.iter().rev().copied().collect(),
            Layout::Scalar | Layout::Counter => Vec::new(),
        }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every parameter and buffer, in the order of the official model.
pub fn parameters(model: &Clip) -> Vec<ParamSpec> {
    let mut collector = Collector { path: Path::default(), specs: Vec::new() };
    model.visit(&mut collector);
    collector.specs
}

/// Number of trained values (buffers not counted) under keys that begin with `prefix`.
pub fn parameter_count(model: &Clip, prefix: &str) -> usize {
    let counted = |spec: &&ParamSpec| !spec.buffer && spec.key.starts_with(prefix);
    parameters(model).iter().filter(counted).map(ParamSpec::count).sum()
}

struct Collector {
    path: Path,
    specs: Vec<ParamSpec>,
}

impl ModuleVisitor for Collector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().to_vec();
        self.specs.push(self.path.spec(param.id, shape));
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }
}

/// The way from the root of the module to where a visitor stands.
#[derive(Default)]
pub(super) struct Path {
    parts: Vec<(String, String)>,
}

impl Path {
    pub fn enter(&mut self, name: &str, container: &str) {
        self.parts.push((name.to_string(), container.to_string()));
    }

    pub fn exit(&mut self) {
        self.parts.pop();
    }

    /// The official key.
    pub fn key(&self) -> String {
        let mut parts: Vec<&str> = Vec::with_capacity(self.parts.len());
        for (name, container) in &self.parts {
            parts.push(match (name.as_str(), container.as_str()) {
                (_, "Enum:ImageTower") => continue,
                ("self_attention", _) => "self",
                ("layer_norm", _) => "LayerNorm",
                ("conv", "Struct:Downsample") => "0",
                ("norm", "Struct:Downsample") => "1",
                ("gamma", _) => "weight",
                ("beta", _) => "bias",
                (name, _) => name,
            });
        }
        // The packed projection is two bare parameters in the official model.
        parts
            .join(".")
            .replace("in_proj.weight", "in_proj_weight")
            .replace("in_proj.bias", "in_proj_bias")
    }

    fn spec(&self, id: ParamId, shape: Vec<usize>) -> ParamSpec {
        let key = self.key();
        let leaf = self.parts.last();
        let linear =
            |(name, container): &(String, String)| name == "weight" && container == "Struct:Linear";
        let layout = match key.as_str() {
            "logit_scale" => Layout::Scalar,
            key if key.ends_with("num_batches_tracked") => Layout::Counter,
            _ if leaf.is_some_and(linear) => Layout::Transposed,
            _ => Layout::Same,
        };
        let buffer = ["running_mean", "running_var", "num_batches_tracked"]
            .iter()
            .any(|name| key.ends_with(name));
        let names: Vec<&str> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
        ParamSpec { key, path: names.join("."), id, shape, layout, buffer }
    }
}

/// Transposes a row-major `[rows, columns]` matrix.
pub(crate) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..(top + TILE).min(rows) {
                for column in left..(left + TILE).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}
