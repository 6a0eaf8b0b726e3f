//! The same weights and inputs for all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use cn_clip_data::{
    format::query_line,
    lmdb::{BuildOptions, build_lmdb_dataset},
    tokenizer::{CONTEXT_LENGTH, Tokenizer},
};
use cn_clip_model::{
    Clip, ClipConfig, DeviceSpec,
    checkpoint::{self, Progress},
};

use super::{Setting, cases::Texts, check, script};
use crate::training::random_batch;

/// Most pictures or texts of a batch.
pub const BATCH: usize = 32;
/// Picture files.
const PICTURES: usize = 200;

/// Short captions.
const CAPTIONS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/emoji/test_texts.jsonl"));

/// The model that is measured.
pub fn config() -> anyhow::Result<ClipConfig> {
    Ok(ClipConfig::published("ViT-B-16")?)
}

/// The first captions.
pub fn captions() -> anyhow::Result<Vec<String>> {
    let texts: Result<Vec<String>, _> =
        CAPTIONS.lines().take(BATCH).map(|line| query_line(line).map(|(_, text)| text)).collect();
    let texts = texts.map_err(|reason| anyhow::anyhow!("captions: {reason}"))?;
    ensure!(texts.len() == BATCH, "fewer than {BATCH} captions");
    Ok(texts)
}

/// File of the token ids.
pub fn tokens_file(directory: &Path, texts: Texts) -> PathBuf {
    directory.join(match texts {
        Texts::Full => "full.i32",
        Texts::Natural => "natural.i32",
        Texts::Trimmed => "trimmed.i32",
    })
}

/// Writes what is not there.
pub fn prepare(setting: &Setting) -> anyhow::Result<()> {
    let directory = &setting.directory;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let config = config()?;
    let write = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).with_context(|| path.display().to_string())
    };
    write(&directory.join("config.json"), &serde_json::to_vec(&config)?)?;
    let batch = random_batch(&config, BATCH, CONTEXT_LENGTH);
    let pixels: Vec<u8> = batch.pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
    write(&directory.join("pixels.f32"), &pixels)?;
    let natural = Tokenizer::chinese().encode_batch(&captions()?, CONTEXT_LENGTH);
    for (texts, ids) in
        [(Texts::Full, &batch.tokens), (Texts::Natural, &natural), (Texts::Trimmed, &natural)]
    {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        write(&tokens_file(directory, texts), &bytes)?;
    }
    let weights = directory.join("weights.pt");
    if !weights.is_file() {
        let model = Clip::init(&config, &"cpu".parse::<DeviceSpec>()?.open()?, 0);
        checkpoint::save(&weights, &model, &Progress::default(), None)?;
    }
    check(
        script(&setting.python, "prepare.py")
            .arg("--directory")
            .arg(directory)
            .arg(format!("--pictures={PICTURES}")),
    )?;
    if !directory.join("lmdb").is_dir() {
        data_set(directory)?;
    }
    Ok(())
}

/// The picture files as the data set that `cn-clip extract-features` reads.
fn data_set(directory: &Path) -> anyhow::Result<()> {
    let (mut pictures, mut texts) = (String::new(), String::new());
    for index in 0..PICTURES {
        let path = directory.join(format!("pictures/{index:04}.jpg"));
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        pictures.push_str(&format!("{index}\t{}\n", STANDARD.encode(&bytes)));
        let line = serde_json::json!({"text_id": index, "text": "图", "image_ids": [index]});
        texts.push_str(&format!("{line}\n"));
    }
    fs::write(directory.join("pictures_imgs.tsv"), pictures).context("pictures_imgs.tsv")?;
    fs::write(directory.join("pictures_texts.jsonl"), texts).context("pictures_texts.jsonl")?;
    build_lmdb_dataset(&BuildOptions {
        data_dir: directory.to_path_buf(),
        splits: vec!["pictures".to_string()],
        lmdb_dir: None,
        progress: false,
    })?;
    Ok(())
}
