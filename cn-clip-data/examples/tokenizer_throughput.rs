//! Texts per second on one core, beside the `tokenizers` crate on the same texts:
//! `cargo run --release -p cn-clip-data --example tokenizer_throughput -- [TEXTS.jsonl]`

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use cn_clip_data::{
    format::{Lines, query_line},
    tokenizer::{CONTEXT_LENGTH, Tokenizer, dataset_text},
};
use tokenizers::{
    PaddingParams, PaddingStrategy, TruncationParams, models::wordpiece::WordPiece,
    normalizers::BertNormalizer, pre_tokenizers::bert::BertPreTokenizer,
    processors::bert::BertProcessing,
};

const ROUNDS: usize = 7;
const LEAST_TIME: Duration = Duration::from_millis(500);

fn main() -> tokenizers::Result<()> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/emoji/train_texts.jsonl");
    let path = std::env::args().nth(1).unwrap_or_else(|| default.to_string());
    let mut lines = Lines::open(Path::new(&path))?;
    let (mut texts, mut line) = (Vec::new(), String::new());
    while lines.next_into(&mut line)? {
        texts.push(query_line(&line).map_err(|reason| lines.error(reason))?.1);
    }
    let peer = peer()?;
    let mut row = vec![0; CONTEXT_LENGTH];
    let mut own = || {
        for text in &texts {
            Tokenizer::chinese().encode_into(&dataset_text(text), &mut row);
        }
        Ok(())
    };
    let mut other =
        || texts.iter().try_for_each(|text| peer.encode_fast(text.as_str(), true).map(drop));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(rate(texts.len(), &mut own)?);
        theirs.push(rate(texts.len(), &mut other)?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("{} texts to {CONTEXT_LENGTH} ids, one core, median of {ROUNDS}", texts.len());
    println!("cn-clip    {ours:12.0} texts/s");
    println!("tokenizers {theirs:12.0} texts/s");
    println!("ratio      {:12.2}", ours / theirs);
    Ok(())
}

/// The crate's pipeline for BERT.
fn peer() -> tokenizers::Result<tokenizers::Tokenizer> {
    let tokenizer = Tokenizer::chinese();
    let mut vocabulary = AHashMap::new();
    for id in 0..tokenizer.vocab_size() {
        if let Some(token) = tokenizer.id_to_token(id as i32) {
            vocabulary.insert(token.to_string(), id as u32);
        }
    }
    let model = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".to_string()).build()?;
    let mut peer = tokenizers::Tokenizer::new(model);
    peer.with_normalizer(Some(BertNormalizer::default()));
    peer.with_pre_tokenizer(Some(BertPreTokenizer));
    let special = |token: &str| {
        let id = tokenizer.token_to_id(token).unwrap_or_default();
        (token.to_string(), id as u32)
    };
    peer.with_post_processor(Some(BertProcessing::new(special("[SEP]"), special("[CLS]"))));
    peer.with_truncation(Some(TruncationParams {
        max_length: CONTEXT_LENGTH,
        ..Default::default()
    }))?;
    peer.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(CONTEXT_LENGTH),
        ..Default::default()
    }));
    Ok(peer)
}

/// Texts per second of `pass`, which handles `count` texts.
fn rate(count: usize, pass: &mut dyn FnMut() -> tokenizers::Result<()>) -> tokenizers::Result<f64> {
    let start = Instant::now();
    let mut passes = 0;
    while start.elapsed() < LEAST_TIME {
        pass()?;
        passes += 1;
    }
    Ok((count * passes) as f64 / start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
