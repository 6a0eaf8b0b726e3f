//! `cn-clip transform-ir-annotation-to-tr`.

use std::path::PathBuf;

use clap::Args;
use cn_clip_eval::annotation::transform_ir_to_tr;

use super::print;

/// Flags of the command.
#[derive(Debug, Args)]
pub struct TransformIrAnnotationArgs {
    /// Text-to-image annotations; the image-to-text form is written beside, as *.tr.jsonl
    #[arg(long, value_name = "JSONL")]
    input: PathBuf,
}

/// Turns annotations around and prints the path of the new file.
///
/// # Errors
/// Names the file and line that is wrong; nothing is written then.
pub fn run(args: &TransformIrAnnotationArgs) -> anyhow::Result<()> {
    print(&format!("{}\n", transform_ir_to_tr(&args.input)?.display()))
}
