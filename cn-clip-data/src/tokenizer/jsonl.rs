//! Tokenising of JSON lines.

use std::io::{BufRead, Write};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Tokenizer, TokenizerError, dataset_text};

/// Lines tokenised at a time.
const CHUNK: usize = 4096;

#[derive(Deserialize)]
struct Input {
    text: String,
}

#[derive(Serialize)]
struct Output<'a> {
    text: &'a str,
    ids: Vec<i32>,
}

/// Reads JSON lines with a `text` field and writes lines with `text` and `ids`.
///
/// `name` is what errors call the input; `dataset` lower-cases and straightens quotes first, as
/// training does. The outer error is one of writing.
pub fn tokenize_lines(
    tokenizer: &Tokenizer,
    reader: impl BufRead,
    writer: &mut impl Write,
    name: &str,
    context_length: usize,
    dataset: bool,
) -> std::io::Result<Result<(), TokenizerError>> {
    let failed =
        |line: u64, reason: String| TokenizerError::Line { name: name.to_string(), line, reason };
    let mut lines = reader.lines().enumerate();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut stopped = None;
        for (index, line) in lines.by_ref().take(CHUNK) {
            match line {
                // A byte-order mark is no part of the text.
                Ok(line) if index == 0 => {
                    chunk.push((1, line.trim_start_matches('\u{feff}').to_string()));
                }
                Ok(line) => chunk.push((index as u64 + 1, line)),
                Err(error) => {
                    stopped = Some(failed(index as u64 + 1, error.to_string()));
                    break;
                }
            }
        }
        let done = chunk.is_empty();
        let encode = |(number, line): &(u64, String)| -> Result<String, TokenizerError> {
            let input: Input = serde_json::from_str(line).map_err(|error| {
                failed(*number, format!("{error}: expected {{\"text\": string}}"))
            })?;
            let text = if dataset { dataset_text(&input.text) } else { (&input.text).into() };
            let ids = tokenizer.encode(&text, context_length);
            serde_json::to_string(&Output { text: &input.text, ids })
                .map_err(|error| failed(*number, error.to_string()))
        };
        let encoded: Vec<_> = chunk.par_iter().map(encode).collect();
        for line in encoded {
            match line {
                Ok(line) => writeln!(writer, "{line}")?,
                Err(error) => return Ok(Err(error)),
            }
        }
        if let Some(error) = stopped {
            return Ok(Err(error));
        }
        if done {
            writer.flush()?;
            return Ok(Ok(()));
        }
    }
}
