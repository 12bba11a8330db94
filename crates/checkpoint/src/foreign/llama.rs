//! A GGUF of the Llama family as `LlamaForCausalLM` knows it: names, order of the rotary rows, sizes, tokenizer.

mod tokenizer;

use serde_json::{Value, json};

use super::gguf::GgufFile;
use crate::{CheckpointError, HostTensor};

pub use tokenizer::byte_level_bpe;

/// `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`; `None` for what a Llama has not.
#[must_use]
pub fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let part = match part.strip_suffix(".weight")? {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

/// The heads whose rows llama.cpp turned in the tensor `name` of the file; `None` where it turned nothing.
///
/// # Errors
/// [`CheckpointError::Malformed`] when the file does not say how many heads there are.
pub fn turned_heads(gguf: &GgufFile, name: &str) -> Result<Option<i64>, CheckpointError> {
    let heads = || gguf.int("llama.attention.head_count");
    let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
    match stem.rsplit('.').next() {
        Some("attn_q") => heads().map(Some),
        Some("attn_k") => match gguf.int("llama.attention.head_count_kv") {
            Ok(heads) => Ok(Some(heads)),
            Err(_) => heads().map(Some), // without the setting there are as many as of queries
        },
        _ => Ok(None),
    }
}

/// Rows `[H, K/2, 2]` (neighbours rotate together, llama.cpp) to `[H, 2, K/2]` (halves rotate together, `rotate_half`).
///
/// `tensor` is `[H * K, D]`; `None` when its rows are no whole count of heads of even size.
#[must_use]
pub fn half_split(tensor: HostTensor, heads: i64) -> Option<HostTensor> {
    let heads = usize::try_from(heads).ok().filter(|heads| *heads > 0)?;
    let [rows, columns] = *tensor.shape.as_slice() else { return None };
    if rows % (2 * heads) != 0 {
        return None;
    }
    let (head, row_bytes) = (rows / heads, columns * tensor.dtype.size());
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for row in 0..rows {
        let (h, k) = (row / head, row % head);
        let (half, i) = (k / (head / 2), k % (head / 2));
        let from = (h * head + 2 * i + half) * row_bytes;
        bytes.extend_from_slice(&tensor.bytes[from..from + row_bytes]);
    }
    Some(HostTensor { bytes, ..tensor })
}

/// `config.json` of `LlamaForCausalLM`, from a GGUF's settings; `dtype` is what its weights will be stored in.
///
/// # Errors
/// [`CheckpointError::Malformed`] naming the setting that is missing, or the architecture that is no Llama's.
pub fn config(gguf: &GgufFile, dtype: &str) -> Result<Value, CheckpointError> {
    if gguf.text("general.architecture")? != "llama" {
        return Err(gguf.refused("its architecture is not llama"));
    }
    let scaling = gguf.text("llama.rope.scaling.type").is_ok_and(|kind| kind != "none");
    if scaling || gguf.shape("rope_freqs.weight").is_some() {
        return Err(
            gguf.refused("its rotary positions are scaled (llama.rope.scaling), which our Llama does not do")
        );
    }
    let (hidden, heads) = (gguf.int("llama.embedding_length")?, gguf.int("llama.attention.head_count")?);
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.int("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": padding(gguf),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": gguf.int("llama.feed_forward_length")?,
        "max_position_embeddings": gguf.int("llama.context_length")?,
        "mlp_bias": false,
        "num_attention_heads": heads,
        "num_hidden_layers": gguf.int("llama.block_count")?,
        "num_key_value_heads": gguf.int("llama.attention.head_count_kv").unwrap_or(heads),
        "head_dim": gguf.int("llama.rope.dimension_count").unwrap_or(hidden / heads.max(1)),
        // a file's 32-bit 1e-5 would print as 9.999999747378752e-6
        "rms_norm_eps": shortest(gguf.float("llama.attention.layer_norm_rms_epsilon")?),
        "rope_scaling": null,
        "rope_theta": gguf.float("llama.rope.freq_base").unwrap_or(10_000.0),
        "tie_word_embeddings": gguf.shape("output.weight").is_none(),
        "torch_dtype": dtype,
        "vocab_size": vocab_size(gguf)?,
    }))
}

/// Rows of the embeddings where no setting says it.
fn vocab_size(gguf: &GgufFile) -> Result<i64, CheckpointError> {
    let rows = gguf.shape("token_embd.weight").and_then(|shape| i64::try_from(*shape.first()?).ok());
    gguf.int("llama.vocab_size").or_else(|error| rows.ok_or(error))
}

fn padding(gguf: &GgufFile) -> Value {
    gguf.int("tokenizer.ggml.padding_token_id").map_or(Value::Null, Value::from)
}

/// The double that a 32-bit float's shortest decimal form names.
fn shortest(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the value came from 32 bits")]
    let narrow = value as f32;
    narrow.to_string().parse().unwrap_or(value)
}

/// `generation_config.json`: ids of the special tokens.
///
/// # Errors
/// As [`config`].
pub fn special_tokens(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    Ok(json!({
        "bos_token_id": gguf.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.int("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": padding(gguf),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_llama_and_of_nothing_else() {
        let name = hugging_face_name("blk.12.ffn_down.weight");
        assert_eq!(name.as_deref(), Some("model.layers.12.mlp.down_proj.weight"));
        for other in
            ["blk.x.attn_q.weight", "blk.1.attn_q.bias", "blk.1.ffn_gate_inp.weight", "rope_freqs.weight"]
        {
            assert_eq!(hugging_face_name(other), None);
        }
    }

    #[test]
    fn half_split_undoes_llama_cpp_permutation() {
        // two heads of four rows: llama.cpp wrote row [h, 2 i + p] from Hugging Face's row [h, 2 p + i]
        let stored: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| row as f32).to_vec();
        let tensor = HostTensor::from_f32(&[8, 1], &stored).unwrap();
        let back = half_split(tensor.clone(), 2).unwrap().to_f32_vec();
        assert_eq!(back, [0., 1., 2., 3., 4., 5., 6., 7.]);
        assert!(half_split(tensor, 3).is_none());
    }
}
