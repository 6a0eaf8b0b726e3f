//! Search over a folder of pictures by texts.
//!
//!     cargo run --release --example image_search -- ViT-B-16 photos 海边的日落 一只猫

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use cn_clip::{
    Features, LoadOptions,
    eval::{DEFAULT_BLOCK, features, knn},
    load_from_name,
    model::DeviceSpec,
};

/// Prints and returns the best three pictures of each text.
pub fn run(
    model: &str,
    folder: &Path,
    texts: &[String],
) -> Result<Vec<Vec<PathBuf>>, Box<dyn Error>> {
    let mut pictures = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        if ["jpg", "jpeg", "png", "webp", "gif", "bmp"].iter().any(|known| ending == *known) {
            pictures.push(path);
        }
    }
    pictures.sort();

    let device = DeviceSpec::CPU.open()?;
    let model = load_from_name(model, &device, &LoadOptions::default())?;
    // These could be kept on disk: `features::FeatureWriter` writes the Python program's form.
    let index = numbered(model.embed_images(&pictures)?)?;
    let queries = numbered(model.embed_texts(texts)?)?;

    let mut found = Vec::new();
    for (text, best) in texts.iter().zip(knn::top_k(&queries, &index, 3, DEFAULT_BLOCK, &device)?) {
        println!("{text}");
        for hit in &best {
            println!("  {:.4}  {}", hit.score, pictures[hit.index].display());
        }
        found.push(best.iter().map(|hit| pictures[hit.index].clone()).collect());
    }
    Ok(found)
}

fn numbered(features: Features) -> Result<features::Features, features::FeatureError> {
    let ids = (0..features.len() as i64).map(Into::into).collect();
    features::Features::new(ids, features.dim(), features.into_vec())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, folder, texts @ ..] = &args[..] else { return Err("MODEL FOLDER TEXT...".into()) };
    run(model, Path::new(folder), texts).map(drop)
}
