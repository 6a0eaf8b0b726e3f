//! Class vectors of labels, encoded once: kept in a file from one run to the next.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use cn_clip_data::atomic::write_atomically;
use cn_clip_model::{Clip, TextConfig};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::classifier::class_vector;
use super::{Classifier, ZeroShotError};
use crate::extract::text_features;
use crate::templates::TemplateSet;

/// Name of the tensor in the file.
const VECTORS: &str = "class_vectors";
/// Name of its list of labels.
const LABELS: &str = "labels";

/// How labels become texts and texts become features.
#[derive(Clone, Debug)]
pub struct PromptEncoder<'a> {
    /// The model.
    pub model: &'a Clip,
    /// What is put around labels.
    pub templates: &'a TemplateSet,
    /// Tokens per prompt.
    pub context_length: usize,
    /// Prompts encoded at once.
    pub batch_size: usize,
}

impl PromptEncoder<'_> {
    /// A classifier for `labels`. Only labels that `cache` does not hold are encoded, each once;
    /// `progress` is told how many prompts there are and how many are done.
    ///
    /// # Errors
    /// [`ZeroShotError::NotFinite`] names a class whose vector is NaN, [`ZeroShotError::Shape`] if
    /// there are no labels or no templates.
    pub fn classifier(
        &self,
        labels: &[String],
        cache: &mut PromptCache,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Classifier, ZeroShotError> {
        let per_label = self.templates.len();
        if labels.is_empty() || per_label == 0 {
            let what = "a classifier needs at least one label and one template".to_owned();
            return Err(ZeroShotError::Shape { what });
        }
        let mut missing: Vec<&String> = Vec::new();
        for label in labels {
            if !cache.vectors.contains_key(label) && !missing.contains(&label) {
                missing.push(label);
            }
        }
        let prompts: Vec<String> =
            missing.iter().flat_map(|label| self.templates.prompts(label)).collect();
        let device = self.model.device();
        let mut pending = Vec::new();
        let mut waiting = missing.into_iter();
        let mut done = 0;
        let encoded = text_features(
            self.model,
            &prompts,
            self.context_length,
            self.batch_size,
            |first, features| {
                let count = self.batch_size.max(1).min(prompts.len() - first);
                let dim = features.len() / count;
                pending.extend_from_slice(features);
                let whole = pending.len() / (per_label * dim) * per_label * dim;
                let classes = pending[..whole].chunks(per_label * dim).zip(&mut waiting);
                for (features, label) in classes {
                    let data = TensorData::new(features.to_vec(), [per_label, dim]);
                    let vector = class_vector(Tensor::from_data(data, &device))?;
                    if !vector.iter().all(|value| value.is_finite()) {
                        let what = format!("the vector of class {label:?}");
                        return Err(ZeroShotError::NotFinite { what });
                    }
                    cache.vectors.insert(label.clone(), vector);
                    cache.changed = true;
                }
                pending.drain(..whole);
                done += count;
                progress(done, prompts.len());
                Ok(())
            },
        );
        encoded.map_err(ZeroShotError::from)?;
        let vectors = labels.iter().filter_map(|label| cache.vectors.get(label));
        Classifier::from_vectors(&vectors.map(Vec::as_slice).collect::<Vec<_>>(), &device)
    }
}

/// Class vectors of one checkpoint, one set of templates and one context length.
#[derive(Clone, Debug, Default)]
pub struct PromptCache {
    path: Option<PathBuf>,
    vectors: HashMap<String, Vec<f32>>,
    changed: bool,
}

impl PromptCache {
    /// What an earlier run has left in `folder` for this checkpoint file and these settings; empty
    /// if there is none, or if it is damaged.
    ///
    /// # Errors
    /// [`ZeroShotError::Read`] if the checkpoint cannot be read.
    pub fn open(
        folder: &Path,
        checkpoint: &Path,
        encoder: &PromptEncoder<'_>,
        text: &TextConfig,
        precision: &str,
    ) -> Result<Self, ZeroShotError> {
        let failed = |source| ZeroShotError::Read { path: checkpoint.to_owned(), source };
        let mut content = Sha256::new();
        io::copy(&mut File::open(checkpoint).map_err(failed)?, &mut content).map_err(failed)?;
        let mut key = Sha256::new();
        key.update(content.finalize());
        let length = encoder.context_length;
        key.update(format!("{text:?} {length} {precision} {:?}", encoder.templates.templates()));
        let name: String = key.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{name}.safetensors"));
        let vectors = match fs::read(&path) {
            Ok(bytes) => read(&bytes).unwrap_or_else(|reason| {
                tracing::warn!("{}: {reason}; prompts are encoded again", path.display());
                HashMap::new()
            }),
            Err(_) => HashMap::new(),
        };
        Ok(Self { path: Some(path), vectors, changed: false })
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Keeps the vectors for the next run, if there are new ones and the cache has a file.
    ///
    /// # Errors
    /// [`ZeroShotError::Write`] if the folder cannot be written to.
    pub fn save(&self) -> Result<(), ZeroShotError> {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return Ok(()) };
        let failed = |source| ZeroShotError::Write { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut labels: Vec<&String> = self.vectors.keys().collect();
        labels.sort();
        let rows = labels.iter().filter_map(|label| self.vectors.get(*label));
        let values: Vec<f32> = rows.flatten().copied().collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let invalid = |error: String| failed(io::Error::other(error));
        let shape = vec![labels.len(), values.len() / labels.len()];
        let view = TensorView::new(Dtype::F32, shape, &bytes);
        let view = view.map_err(|error| invalid(error.to_string()))?;
        let list = serde_json::to_string(&labels).map_err(|error| invalid(error.to_string()))?;
        let metadata = Some(HashMap::from([(LABELS.to_owned(), list)]));
        let file = safetensors::serialize([(VECTORS, view)], metadata);
        let file = file.map_err(|error| invalid(error.to_string()))?;
        write_atomically(path, &file).map_err(failed)
    }
}

/// Labels and vectors of a file, or what is wrong with it.
fn read(bytes: &[u8]) -> Result<HashMap<String, Vec<f32>>, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let list = header.metadata().as_ref().and_then(|map| map.get(LABELS));
    let labels: Vec<String> =
        serde_json::from_str(list.ok_or("no labels")?).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = file.tensor(VECTORS).map_err(|error| error.to_string())?;
    let &[rows, dim] = tensor.shape() else { return Err("no matrix of vectors".to_owned()) };
    if tensor.dtype() != Dtype::F32 || rows != labels.len() || dim == 0 {
        return Err("labels and vectors do not fit".to_owned());
    }
    let values: Vec<f32> =
        tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(labels.into_iter().zip(values.chunks(dim).map(<[f32]>::to_vec)).collect()),
        false => Err("a vector is not finite".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use cn_clip_model::ClipConfig;

    use super::*;

    const TINY: &str = r#"{"embed_dim": 8, "image_resolution": 16, "vision_layers": 1,
        "vision_width": 16, "vision_head_width": 8, "vision_patch_size": 8, "vocab_size": 21128,
        "text_attention_probs_dropout_prob": 0.0, "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.0, "text_hidden_size": 8, "text_initializer_range": 0.02,
        "text_intermediate_size": 16, "text_max_position_embeddings": 64,
        "text_num_attention_heads": 2, "text_num_hidden_layers": 1, "text_type_vocab_size": 2}"#;

    struct Setting {
        folder: tempfile::TempDir,
        config: ClipConfig,
        model: Clip,
    }

    impl Setting {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tiny.json");
            fs::write(&path, TINY).unwrap();
            let name = path.to_str().unwrap();
            let config = ClipConfig::load(name, name).unwrap();
            let model = Clip::init(&config, &Device::default(), 3);
            fs::write(folder.path().join("weights.pt"), "weights").unwrap();
            Self { folder, config, model }
        }

        fn encoder<'a>(
            &'a self,
            templates: &'a TemplateSet,
            batch_size: usize,
        ) -> PromptEncoder<'a> {
            PromptEncoder { model: &self.model, templates, context_length: 24, batch_size }
        }

        fn cache(&self, encoder: &PromptEncoder<'_>) -> PromptCache {
            let (folder, weights) =
                (self.folder.path().join("cache"), self.folder.path().join("weights.pt"));
            PromptCache::open(&folder, &weights, encoder, &self.config.text, "fp32").unwrap()
        }
    }

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn weights(classifier: &Classifier) -> Vec<f32> {
        classifier.weights().into_data().try_into_vec().unwrap()
    }

    #[test]
    fn no_prompt_is_encoded_twice() {
        let setting = Setting::new();
        let food = TemplateSet::named("food").unwrap();
        let encoder = setting.encoder(&food, 10);
        let mut cache = setting.cache(&encoder);
        let build = |cache: &mut PromptCache, names: &[&str]| {
            let mut encoded = 0;
            let built = encoder.classifier(&labels(names), cache, |done, all| {
                assert!(done <= all);
                encoded = done;
            });
            (weights(&built.unwrap()), encoded)
        };
        // A label that comes twice is one class vector.
        let (first, encoded) = build(&mut cache, &["猫", "狗", "猫"]);
        assert_eq!(encoded, 2 * 21);
        cache.save().unwrap();
        let (again, encoded) = build(&mut setting.cache(&encoder), &["猫", "狗", "猫"]);
        assert_eq!((encoded, again), (0, first));
        // One more label costs its own prompts only.
        let mut kept = setting.cache(&encoder);
        assert_eq!((kept.len(), kept.is_empty()), (2, false));
        assert_eq!(build(&mut kept, &["鸟", "狗"]).1, 21);
        kept.save().unwrap();
        assert_eq!(setting.cache(&encoder).len(), 3);
        assert_eq!(fs::read_dir(setting.folder.path().join("cache")).unwrap().count(), 1);
    }

    #[test]
    fn batches_do_not_matter() {
        let setting = Setting::new();
        let kitti = TemplateSet::named("kitti").unwrap();
        let build = |batch| {
            let encoder = setting.encoder(&kitti, batch);
            let mut cache = PromptCache::default();
            let built = encoder.classifier(&labels(&["猫", "狗", "鸟"]), &mut cache, |_, _| ());
            weights(&built.unwrap())
        };
        let expected = build(100);
        for batch in [1, 2, 3, 4, 8] {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(build(batch).iter().zip(&expected).all(close), "batch {batch}");
        }
    }

    #[test]
    fn other_checkpoints_templates_and_lengths_have_their_own_vectors() {
        let setting = Setting::new();
        let (kitti, food) =
            (TemplateSet::named("kitti").unwrap(), TemplateSet::named("food").unwrap());
        let encoder = setting.encoder(&kitti, 8);
        let mut cache = setting.cache(&encoder);
        encoder.classifier(&labels(&["猫"]), &mut cache, |_, _| ()).unwrap();
        cache.save().unwrap();
        assert_eq!(setting.cache(&encoder).len(), 1);
        assert!(setting.cache(&setting.encoder(&food, 8)).is_empty());
        let longer = PromptEncoder { context_length: 30, ..encoder.clone() };
        assert!(setting.cache(&longer).is_empty());
        fs::write(setting.folder.path().join("weights.pt"), "other weights").unwrap();
        assert!(setting.cache(&encoder).is_empty());
    }

    #[test]
    fn damaged_files_are_encoded_again() {
        let setting = Setting::new();
        let kitti = TemplateSet::named("kitti").unwrap();
        let encoder = setting.encoder(&kitti, 8);
        let mut cache = setting.cache(&encoder);
        let expected =
            weights(&encoder.classifier(&labels(&["猫", "狗"]), &mut cache, |_, _| ()).unwrap());
        cache.save().unwrap();
        let path = cache.path.clone().unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> =
            [0, 7, 8, 40, whole.len() - 1].iter().map(|&length| whole[..length].to_vec()).collect();
        damaged.push(b"oops".repeat(10));
        let mut not_a_number = whole.clone();
        not_a_number.truncate(whole.len() - 4);
        not_a_number.extend(f32::NAN.to_le_bytes());
        damaged.push(not_a_number);
        for bytes in damaged {
            fs::write(&path, bytes).unwrap();
            let mut cache = setting.cache(&encoder);
            assert!(cache.is_empty());
            let built = encoder.classifier(&labels(&["猫", "狗"]), &mut cache, |_, _| ());
            assert_eq!(weights(&built.unwrap()), expected);
            cache.save().unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn missing_checkpoints_and_labels_are_errors() {
        let setting = Setting::new();
        let kitti = TemplateSet::named("kitti").unwrap();
        let encoder = setting.encoder(&kitti, 8);
        let missing = PromptCache::open(
            setting.folder.path(),
            Path::new("none.pt"),
            &encoder,
            &setting.config.text,
            "fp32",
        );
        assert!(matches!(missing, Err(ZeroShotError::Read { .. })));
        let error = encoder.classifier(&[], &mut PromptCache::default(), |_, _| ());
        assert!(matches!(error, Err(ZeroShotError::Shape { .. })));
    }
}
