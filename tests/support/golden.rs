//! Recorded outputs of the Python program (`tests/fixtures/README.md`), and comparison with them.

#![allow(dead_code)] // Every test binary uses a part of it.

use std::{collections::BTreeMap, env, path::PathBuf};

use safetensors::{Dtype, SafeTensors};

/// Path of a fixture: in the directory `CN_CLIP_FIXTURES` or, without that, of the workspace.
pub fn fixture(name: &str) -> PathBuf {
    if let Some(root) = env::var_os("CN_CLIP_FIXTURES") {
        return PathBuf::from(root).join(name);
    }
    // Member crates lie one level below the workspace.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = if root.join("tests/fixtures").is_dir() { root } else { root.join("..") };
    root.join("tests/fixtures").join(name)
}

/// One recorded tensor.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Recorded {
    pub fn ints(&self) -> Vec<i32> {
        self.values.iter().map(|value| *value as i32).collect()
    }
}

/// A file of recorded tensors.
pub struct Golden {
    pub tensors: BTreeMap<String, Recorded>,
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = fixture(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .filter_map(|(name, view)| {
                let data = view.data();
                let values = match view.dtype() {
                    Dtype::F32 => {
                        data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
                    }
                    Dtype::F64 => {
                        data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
                    }
                    Dtype::I64 => {
                        data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
                    }
                    Dtype::U8 => data.iter().map(|b| f32::from(*b)).collect(),
                    // `get` says so if a test wants one of these.
                    _ => return None,
                };
                Some((name.to_string(), Recorded { shape: view.shape().to_vec(), values }))
            })
            .collect();
        Self { tensors }
    }

    pub fn get(&self, name: &str) -> &Recorded {
        self.tensors.get(name).unwrap_or_else(|| panic!("no `{name}` recorded"))
    }

    /// What was recorded of a whole tensor in official layout (every k-th element, or some rows),
    /// cut out of it and as recorded.
    pub fn cut(&self, name: &str, values: &[f32]) -> Option<(Vec<f32>, Vec<f32>)> {
        let (suffix, recorded) = self.tensors.iter().find_map(|(key, recorded)| {
            let suffix = key.strip_prefix(name)?;
            (suffix.is_empty() || suffix.starts_with('[')).then_some((suffix, recorded))
        })?;
        let got: Vec<f32> = if suffix.is_empty() {
            values.to_vec()
        } else if let Some(step) = suffix.strip_prefix("[flat::") {
            let step = step.trim_end_matches(']').parse().unwrap();
            values.iter().step_by(step).copied().collect()
        } else {
            let width = recorded.shape[1];
            let rows: Vec<usize> = match suffix {
                "[rows]" => {
                    self.get("word_embedding_rows").values.iter().map(|r| *r as usize).collect()
                }
                "[rows 0::16]" => (0..values.len() / width).step_by(16).collect(),
                other => panic!("unknown suffix {other}"),
            };
            rows.iter().flat_map(|row| values[row * width..(row + 1) * width].to_vec()).collect()
        };
        assert_eq!(got.len(), recorded.values.len(), "{name}: number of values");
        Some((got, recorded.values.clone()))
    }

    /// Error of a whole tensor relative to the largest recorded value.
    pub fn error(&self, name: &str, values: &[f32]) -> Option<f32> {
        let (got, expected) = self.cut(name, values)?;
        Some(relative_error(&got, &expected))
    }

    /// A recorded value of one element.
    pub fn scalar(&self, name: &str) -> f32 {
        self.get(name).values[0]
    }

    /// As [`error`](Self::error), and fails the test when it exceeds `tolerance`.
    pub fn check(&self, name: &str, values: &[f32], tolerance: f32) {
        let error = self.error(name, values).unwrap_or_else(|| panic!("no `{name}` recorded"));
        assert!(error <= tolerance, "{name}: relative error {error:e} > {tolerance:e}");
    }
}

/// What came out of a comparison: errors by name.
#[derive(Debug, Default)]
pub struct Errors {
    /// Name, error relative to the largest expected value.
    pub found: Vec<(String, f32)>,
    /// Squared norms of the differences and of what was expected.
    squares: (f64, f64),
}

impl Errors {
    /// Compares values with those expected.
    pub fn add(&mut self, name: &str, got: &[f32], expected: &[f32]) {
        let square = |x: f32| f64::from(x) * f64::from(x);
        self.squares.0 += got.iter().zip(expected).map(|(a, b)| square(a - b)).sum::<f64>();
        self.squares.1 += expected.iter().map(|b| square(*b)).sum::<f64>();
        self.found.push((name.to_string(), relative_error(got, expected)));
    }

    /// Compares values with a recorded tensor, or with what was recorded of it.
    pub fn add_recorded(&mut self, golden: &Golden, name: &str, values: &[f32]) {
        let found = golden.cut(name, values);
        let (got, expected) = found.unwrap_or_else(|| panic!("no `{name}` recorded"));
        self.add(name, &got, &expected);
    }

    /// The largest error and where it is.
    pub fn worst(&self) -> (&str, f32) {
        let worst = self.found.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        worst.map_or(("nothing compared", f32::INFINITY), |(name, error)| (name, *error))
    }

    /// Euclidean norm of all differences over that of all expected values.
    pub fn overall(&self) -> f32 {
        let error = (self.squares.0 / self.squares.1.max(1e-24)).sqrt() as f32;
        if error.is_nan() { f32::INFINITY } else { error }
    }

    /// Fails the test when an error exceeds `tolerance`.
    pub fn check(&self, tolerance: f32) {
        let (name, error) = self.worst();
        assert!(error <= tolerance, "{name}: relative error {error:e} > {tolerance:e}");
    }
}

/// Largest difference over largest expected magnitude.
pub fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let worst = got
        .iter()
        .zip(expected)
        .map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() })
        .fold(0.0, f32::max);
    if worst == 0.0 { 0.0 } else { worst / scale.max(1e-12) }
}

/// Euclidean norm of the difference over that of what is expected.
pub fn norm_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|b| square(*b)).sum();
    (difference.sqrt() / norm.sqrt().max(1e-12)) as f32
}

/// Whether the gradient of a parameter is zero but for rounding: attention does not change when
/// the same vector is added to every key.
pub fn has_zero_gradient(key: &str) -> bool {
    key.ends_with("attention.self.key.bias") || key.ends_with("attnpool.k_proj.bias")
}

/// The elements of a parameter whose gradient is zero but for rounding, of which AdamW makes steps
/// in arbitrary directions.
pub fn without_gradient(key: &str, count: usize) -> std::ops::Range<usize> {
    match key {
        key if has_zero_gradient(key) => 0..count,
        // Queries, keys, values.
        key if key.ends_with("in_proj_bias") => count / 3..2 * count / 3,
        _ => 0..0,
    }
}
