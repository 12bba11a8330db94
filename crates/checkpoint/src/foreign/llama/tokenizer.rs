//! A byte-level BPE `tokenizer.json` out of a GGUF's vocabulary and merges.

use serde_json::{Map, Value, json};

use crate::CheckpointError;
use crate::foreign::gguf::GgufFile;

/// `LLAMA_TOKEN_TYPE_CONTROL`: text that the model was given as one symbol.
const CONTROL: i64 = 3;

/// The `tokenizer.json` of a file whose `tokenizer.ggml.pre` is `smollm`: each digit for itself, then GPT-2's
/// splitting and byte alphabet (llama.cpp, `llm_tokenizer_bpe`).
///
/// # Errors
/// [`CheckpointError::Malformed`] when a part is missing; [`CheckpointError::Tensor`] for another kind of tokenizer.
pub fn byte_level_bpe(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    let kind = (gguf.text("tokenizer.ggml.model")?, gguf.text("tokenizer.ggml.pre")?);
    if kind != ("gpt2", "smollm") {
        let reason = format!("{}/{} is not the byte-level BPE we rebuild", kind.0, kind.1);
        return Err(CheckpointError::Tensor { name: "tokenizer".to_owned(), reason });
    }
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    let types = gguf.ints("tokenizer.ggml.token_type")?;
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let specials: Vec<Value> = tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == CONTROL)
        .map(|(id, (token, _))| special(id, token))
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ],
        },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": gguf.texts("tokenizer.ggml.merges")?,
        },
    }))
}

fn special(id: usize, token: &str) -> Value {
    json!({
        "id": id,
        "content": token,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": true,
    })
}
