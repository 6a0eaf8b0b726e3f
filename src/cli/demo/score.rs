//! Scores of the trained model on pictures of a designer it has never seen.

use std::{convert::Infallible, fs, path::Path};

use anyhow::Context;
use burn::tensor::{Tensor, TensorData};
use cn_clip_data::{
    DataError, Id,
    format::{Lines, text_line},
    image::ImageTransform,
    lmdb::LmdbImages,
};
use cn_clip_eval::{
    DEFAULT_BLOCK,
    extract::{image_features, text_features},
    features::{Features, Modality},
    knn::{Neighbour, top_k},
    recall::{RetrievalReport, retrieval_report},
    report::{Hit, Search},
    zeroshot::{Accuracy, Classifier, ImageFolder, read_labels},
};
use cn_clip_model::{Clip, ClipConfig};

use super::recipe::CONTEXT_LENGTH;

/// Pictures or texts encoded at once.
const BATCH: usize = 128;

/// Searches shown on the page.
const SEARCHES: usize = 12;
/// Pictures shown for each.
const SHOWN: usize = 5;

/// What was measured.
pub struct Scores {
    /// Both directions of retrieval on the test split.
    pub retrieval: RetrievalReport,
    /// Zero-shot classification.
    pub accuracy: Accuracy,
    /// Classes of it.
    pub classes: usize,
    /// Captions of the test split, evenly spaced, and what they find.
    pub searches: Vec<Search>,
}

impl Scores {
    /// Extracts features of the test split and of the zero-shot pictures below `directory`, and
    /// scores them.
    pub fn new(model: &Clip, config: &ClipConfig, directory: &Path) -> anyhow::Result<Self> {
        let data = directory.join("data");
        let encoder = Encoder { model, config };
        let test = TestTexts::read(&data.join("test_texts.jsonl"))?;
        let text = encoder.texts(test.ids.clone(), &test.texts)?;
        let pictures = LmdbImages::open(data.join("lmdb/test/imgs"))?;
        let image = encoder.images(pictures.ids()?, |id| pictures.image(id))?;
        let features = directory.join("features");
        fs::create_dir_all(&features)
            .with_context(|| format!("creating {}", features.display()))?;
        text.write(&features.join("test_texts.txt_feat.jsonl"), Modality::Text)?;
        image.write(&features.join("test_imgs.img_feat.jsonl"), Modality::Image)?;
        let device = model.device();
        let retrieval = retrieval_report(&image, &text, &test.positives, &device)?;
        let (accuracy, classes) = encoder.classify(&data.join("zeroshot"))?;
        let found = top_k(&text, &image, SHOWN, DEFAULT_BLOCK, &device)?;
        let every = (test.texts.len() / SEARCHES).max(1);
        let searches = (every / 2..test.texts.len())
            .step_by(every)
            .map(|row| test.search(row, &found[row], &image, &pictures))
            .collect::<Result<_, _>>()?;
        Ok(Self { retrieval, accuracy, classes, searches })
    }
}

/// The texts of the test split.
struct TestTexts {
    ids: Vec<Id>,
    texts: Vec<String>,
    /// Each text with its pictures.
    positives: Vec<(Id, Vec<Id>)>,
}

impl TestTexts {
    fn read(path: &Path) -> Result<Self, DataError> {
        let mut lines = Lines::open(path)?;
        let mut out = Self { ids: Vec::new(), texts: Vec::new(), positives: Vec::new() };
        let mut line = String::new();
        while lines.next_into(&mut line)? {
            let record = text_line(&line).map_err(|reason| lines.error(reason))?;
            out.ids.push(record.text_id.clone());
            out.texts.push(record.text);
            out.positives.push((record.text_id, record.image_ids));
        }
        Ok(out)
    }

    fn search(
        &self,
        row: usize,
        found: &[Neighbour],
        image: &Features,
        pictures: &LmdbImages,
    ) -> Result<Search, DataError> {
        let hit = |neighbour: &Neighbour| {
            let id = &image.ids()[neighbour.index];
            let caption = self.positives.iter().position(|(_, images)| images.contains(id));
            Ok(Hit {
                picture: pictures.image(id)?,
                caption: caption.map_or_else(String::new, |row| self.texts[row].clone()),
                score: neighbour.score as f32,
                correct: self.positives[row].1.contains(id),
            })
        };
        let hits = found.iter().map(hit).collect::<Result<_, DataError>>()?;
        Ok(Search { query: self.texts[row].clone(), hits })
    }
}

struct Encoder<'a> {
    model: &'a Clip,
    config: &'a ClipConfig,
}

impl Encoder<'_> {
    fn texts(&self, ids: Vec<Id>, texts: &[String]) -> anyhow::Result<Features> {
        let mut values = Vec::new();
        text_features(self.model, texts, CONTEXT_LENGTH, BATCH, |_, features| {
            values.extend_from_slice(features);
            Ok::<(), Infallible>(())
        })?;
        Ok(Features::new(ids, self.config.vision.embed_dim, values)?)
    }

    fn images(
        &self,
        ids: Vec<Id>,
        picture: impl Fn(&Id) -> Result<Vec<u8>, DataError> + Sync,
    ) -> anyhow::Result<Features> {
        let transform = ImageTransform::new(self.config.vision.image_resolution);
        let mut values = Vec::new();
        image_features(self.model, &ids, picture, &transform, BATCH, |_, features| {
            values.extend_from_slice(features);
            Ok::<(), Infallible>(())
        })?;
        Ok(Features::new(ids, self.config.vision.embed_dim, values)?)
    }

    /// Classifies the pictures of a folder by the names of their classes, and counts the classes.
    fn classify(&self, root: &Path) -> anyhow::Result<(Accuracy, usize)> {
        let folder = ImageFolder::open(&root.join("test"))?;
        let classes = folder.classes.len();
        let labels = read_labels(&root.join("label_cn.txt"), classes)?;
        let tensor = |features: &Features| {
            let data = TensorData::new(features.data().to_vec(), [features.rows(), features.dim()]);
            Tensor::<2>::from_data(data, &self.model.device())
        };
        let names = self.texts((0..classes as i64).map(Id::Int).collect(), &labels)?;
        let names = tensor(&names);
        let prompts = (0..classes).map(|class| names.clone().slice_dim(0, class..class + 1));
        let classifier = Classifier::from_prompts(prompts, &self.model.device())?;
        let ids = (0..folder.images.len() as i64).map(Id::Int).collect();
        let images = self.images(ids, |id| {
            let index = if let Id::Int(index) = id { *index as usize } else { 0 };
            let path = &folder.images[index].0;
            fs::read(path).map_err(DataError::io(path))
        })?;
        let probabilities = classifier.probabilities(tensor(&images))?;
        Ok((Accuracy::new(&probabilities, classes, &folder.targets())?, classes))
    }
}
