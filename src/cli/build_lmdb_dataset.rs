//! `cn-clip build-lmdb-dataset`.

use std::path::PathBuf;

use clap::Args;
use cn_clip_data::lmdb::{BuildOptions, build_lmdb_dataset};

use super::note;

/// Flags of `cn-clip build-lmdb-dataset`.
#[derive(Debug, Args)]
pub struct BuildLmdbDatasetArgs {
    /// Directory of `<split>_imgs.tsv` and `<split>_texts.jsonl`
    #[arg(long, alias = "data_dir", value_name = "DIR")]
    data_dir: PathBuf,
    /// Splits, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    splits: Vec<String>,
    /// Directory of the result [default: <DATA_DIR>/lmdb]
    #[arg(long, alias = "lmdb_dir", value_name = "DIR")]
    lmdb_dir: Option<PathBuf>,
}

/// Builds the splits.
pub fn run(args: &BuildLmdbDatasetArgs) -> anyhow::Result<()> {
    let options = BuildOptions {
        data_dir: args.data_dir.clone(),
        splits: args.splits.clone(),
        lmdb_dir: args.lmdb_dir.clone(),
        progress: true,
    };
    for split in build_lmdb_dataset(&options)? {
        note(&format!(
            "{}: {} pictures, {} texts, {} pairs -> {}",
            split.split,
            split.images,
            split.texts,
            split.pairs,
            split.path.display()
        ));
    }
    Ok(())
}
