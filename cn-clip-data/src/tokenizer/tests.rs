use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokenizers::{Model, models::wordpiece::WordPiece};

use super::*;

#[derive(Deserialize)]
struct Recorded {
    text: String,
    tokens: Option<Vec<String>>,
    n_tokens: usize,
    ids52: Vec<i32>,
    ids24: Vec<i32>,
    dataset_text: String,
    dataset_ids52: Vec<i32>,
}

fn recorded() -> Vec<Recorded> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_recorded_ids_are_reproduced() {
    let tokenizer = Tokenizer::chinese();
    let recorded = recorded();
    assert_eq!(recorded.len(), 300);
    for line in recorded {
        let text = &line.text;
        assert_eq!(tokenizer.encode(text, 52), line.ids52, "{text:?}");
        assert_eq!(tokenizer.encode(text, 24), line.ids24, "{text:?}");
        let tokens = tokenizer.tokenize(text);
        assert_eq!(tokens.len(), line.n_tokens, "{text:?}");
        if let Some(expected) = line.tokens {
            assert_eq!(tokens, expected, "{text:?}");
        }
        assert_eq!(dataset_text(text), line.dataset_text, "{text:?}");
        assert_eq!(tokenizer.encode(&dataset_text(text), 52), line.dataset_ids52, "{text:?}");
    }
}

#[test]
fn the_embedded_vocabulary_is_whole() {
    let tokenizer = Tokenizer::from_vocab(include_str!("../../assets/vocab.txt")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 21128);
    for (token, id) in [("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102)] {
        assert_eq!(tokenizer.token_to_id(token), Some(id));
        assert_eq!(tokenizer.id_to_token(id), Some(token));
    }
    assert_eq!(tokenizer.id_to_token(-1), None);
    assert_eq!(tokenizer.id_to_token(21128), None);
}

#[test]
fn vocabularies_that_cannot_work_say_why() {
    let error = |text: &str| Tokenizer::from_vocab(text).unwrap_err().to_string();
    assert!(error("[PAD]\n[UNK]\n[CLS]").contains("[SEP]"));
    let twice = error("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na");
    assert!(twice.contains("line 6") && twice.contains("line 5"), "{twice}");
}

#[test]
fn any_text_and_any_length_work() {
    let tokenizer = Tokenizer::chinese();
    let mut rng = StdRng::seed_from_u64(3);
    for round in 0..3000 {
        let length = rng.random_range(0..40);
        let text: String = (0..length)
            .map(|_| match rng.random_range(0..4) {
                0 => rng.random_range('\u{20}'..'\u{7f}'),
                1 => rng.random_range('\u{4e00}'..'\u{9fff}'),
                2 => rng.random_range('\u{80}'..'\u{600}'),
                _ => rng.random::<char>(),
            })
            .collect();
        let ids = tokenizer.encode(&text, round % 60);
        assert_eq!(ids.len(), round % 60);
        if ids.len() > 1 {
            assert_eq!(ids[0], 101);
            assert!(ids.contains(&102), "{text:?}");
        }
    }
    assert_eq!(tokenizer.encode("   ", 5), [101, 102, 0, 0, 0]);
    assert_eq!(tokenizer.encode(&"a".repeat(201), 4), [101, 100, 102, 0]);
}

#[test]
fn words_are_cut_as_by_the_tokenizers_crate() {
    let tokenizer = Tokenizer::chinese();
    let oracle = WordPiece::builder()
        .vocab(
            (0..21128)
                .map(|id| (tokenizer.id_to_token(id).unwrap().to_string(), id as u32))
                .collect::<ahash::AHashMap<String, u32>>(),
        )
        .unk_token("[UNK]".to_string())
        .max_input_chars_per_word(200)
        .build()
        .unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    for _ in 0..5000 {
        let length = rng.random_range(1..20);
        let word: String = (0..length).map(|_| rng.random_range('a'..='z')).collect();
        let expected: Vec<String> =
            oracle.tokenize(&word).unwrap().into_iter().map(|token| token.value).collect();
        assert_eq!(tokenizer.tokenize(&word), expected, "{word}");
    }
}

#[test]
fn lines_go_in_and_out() {
    let run = |input: &str| {
        let mut out = Vec::new();
        let result = jsonl::tokenize_lines(
            Tokenizer::chinese(),
            input.as_bytes(),
            &mut out,
            "in.jsonl",
            6,
            false,
        );
        (result.unwrap(), String::from_utf8(out).unwrap())
    };
    let (result, out) = run("{\"text\": \"猫A\", \"other\": 1}\n{\"text\": \"\"}\n");
    result.unwrap();
    assert_eq!(
        out,
        "{\"text\":\"猫A\",\"ids\":[101,4344,143,102,0,0]}\n{\"text\":\"\",\"ids\":[101,102,0,0,0,0]}\n"
    );
    let (result, marked) = run("\u{feff}{\"text\": \"猫A\", \"other\": 1}\n{\"text\": \"\"}\n");
    result.unwrap();
    assert_eq!(marked, out);
    let (result, _) = run("{\"text\": \"a\"}\n{\"txt\": \"a\"}\n");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("in.jsonl:2") && error.contains("text"), "{error}");
}
