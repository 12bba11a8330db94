//! Text processors and WordPiece against LAVIS's own strings and ids.

use std::path::{Path, PathBuf};

use data::WordPiece;
use data::caption::{MAX_WORDS, blip_caption, blip_question};
use safetensors::SafeTensors;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/text")
}

fn strings(file: &str, key: &str) -> Vec<String> {
    let value: Value = serde_json::from_slice(&std::fs::read(folder().join(file)).unwrap()).unwrap();
    serde_json::from_value(value[key].clone()).unwrap()
}

fn tokenizer() -> WordPiece {
    WordPiece::from_vocab(&folder().join("vocab.txt")).unwrap()
}

/// Compares ids row by row, so that a failure names its text.
fn assert_ids(name: &str, got: &[i64], texts: &[String]) {
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let expected: Vec<i64> =
        tensor.data().chunks_exact(8).map(|eight| i64::from_le_bytes(eight.try_into().unwrap())).collect();
    let cols = tensor.shape()[1];
    assert_eq!(got.len(), expected.len());
    for (row, text) in texts.iter().enumerate() {
        let range = row * cols..(row + 1) * cols;
        assert_eq!(got[range.clone()], expected[range], "{name}: {text:?}");
    }
}

#[test]
fn processors_equal_lavis() {
    let raw = strings("inputs.json", "captions");
    let captions: Vec<String> = raw.iter().map(|text| blip_caption(text, MAX_WORDS)).collect();
    assert_eq!(captions, strings("expected.json", "caption_processed"));
    // The case's prompt and word limit.
    let prompted: Vec<String> =
        raw.iter().map(|text| format!("a photo of {}", blip_caption(text, 8))).collect();
    assert_eq!(prompted, strings("expected.json", "caption_processed_prompt"));
    // The case made its questions with the prompt's word limit too.
    let questions: Vec<String> = raw.iter().map(|text| blip_question(text, 8)).collect();
    assert_eq!(questions, strings("expected.json", "question_processed"));
}

#[test]
fn ids_equal_the_slow_bert_tokenizers() {
    let tokenizer = tokenizer();
    let raw = strings("inputs.json", "captions");
    let captions = strings("expected.json", "caption_processed");
    let batch = tokenizer.encode(&captions, 32).unwrap();
    assert_ids("input_ids", &batch.ids, &captions);
    assert_ids("attention_mask", &batch.mask, &captions);
    let retrieval = tokenizer.encode(&captions, 35).unwrap();
    assert_ids("retrieval35_input_ids", &retrieval.ids, &captions);
    let unprocessed = tokenizer.encode(&raw, 32).unwrap();
    assert_ids("raw_input_ids", &unprocessed.ids, &raw);
    assert_ids("raw_attention_mask", &unprocessed.mask, &raw);

    let mut decoder = batch.ids.clone();
    decoder.iter_mut().step_by(32).for_each(|id| *id = tokenizer.special().bos);
    assert_ids("decoder_input_ids", &decoder, &captions);
    assert_eq!(tokenizer.vocab_size(), 30_523);
}

#[test]
fn decoded_texts_equal_the_slow_bert_tokenizers() {
    let tokenizer = tokenizer();
    let batch = tokenizer.encode(&strings("expected.json", "caption_processed"), 32).unwrap();
    let texts: Vec<String> = batch.ids.chunks_exact(32).map(|row| tokenizer.decode(row)).collect();
    assert_eq!(texts, strings("expected.json", "decoded_skip_special"));
}

#[test]
fn tight_rows_are_the_padded_ones_without_their_padding() {
    let tokenizer = tokenizer();
    let texts = ["a cat".to_owned(), "a very large dog".to_owned(), String::new()];
    let tight = tokenizer.encode_tight(&texts, 32).unwrap();
    assert_eq!((tight.rows, tight.cols), (3, 6));
    let padded = tokenizer.encode(&texts, 32).unwrap();
    for row in 0..3 {
        assert_eq!(tight.ids[row * 6..(row + 1) * 6], padded.ids[row * 32..row * 32 + 6]);
    }
    assert_eq!(tight.mask[12..], [1, 1, 0, 0, 0, 0]);
    assert!(tokenizer.encode(&texts, 1).is_err());
}

#[test]
fn a_vocabulary_without_its_special_tokens_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    std::fs::write(&path, "[PAD]\n[UNK]\nword\n").unwrap();
    let error = WordPiece::from_vocab(&path).unwrap_err().to_string();
    assert!(error.contains("no [CLS]") && error.contains("vocab.txt"), "{error}");
    assert!(WordPiece::from_vocab(&folder.path().join("absent")).is_err());
}

#[test]
fn special_ids_are_looked_up_in_a_shuffled_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    std::fs::write(&path, "cat\n[SEP]\na\n[CLS]\n##s\n[UNK]\n[MASK]\n[PAD]").unwrap();
    let tokenizer = WordPiece::from_vocab(&path).unwrap();
    let special = tokenizer.special();
    assert_eq!((special.pad, special.cls, special.sep, special.bos), (7, 3, 1, 8));
    let batch = tokenizer.encode(&["A cats [DEC] [cls]".to_owned()], 8).unwrap();
    // "[cls]" in lower case is no special token: three words that are not in the vocabulary.
    assert_eq!(batch.ids, [3, 2, 0, 4, 8, 5, 5, 1]);
    assert_eq!(tokenizer.decode(&batch.ids), "a cats");
}
