//! The frozen language model: Hugging Face's names on both sides, what must be there, what is a copy.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::tensors::{Expected, Info, Infos, Planned, Recipe, expect_linear, expect_norm};
use crate::names::LanguageFamily;

/// A language model under Hugging Face's names.
pub(super) struct Language {
    pub planned: Vec<Planned>,
    /// Tied copies: the copy, what it must equal (full names of the source).
    pub copies: Vec<(String, String)>,
    /// Constants that old files keep.
    pub left_out: Vec<String>,
}

/// The family that a `config.json` names.
pub(super) fn family(config: &Value) -> Option<LanguageFamily> {
    match config["model_type"].as_str() {
        Some("opt") => Some(LanguageFamily::Opt),
        Some("t5") => Some(LanguageFamily::T5),
        Some("llama") => Some(LanguageFamily::Llama),
        _ => None,
    }
}

/// `config` with transformers' defaults where it leaves a size out: a whole model's `text_config` often says only what
/// differs from them (`OPTConfig`, `T5Config`, `LlamaConfig` of transformers 5.23).
pub(super) fn with_defaults(config: &Value, family: LanguageFamily) -> Value {
    let defaults = match family {
        LanguageFamily::Opt => json!({
            "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
            "max_position_embeddings": 2048, "num_attention_heads": 12, "do_layer_norm_before": true,
            "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
        }),
        LanguageFamily::T5 => json!({
            "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "pad_token_id": 0, "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }),
        LanguageFamily::Llama => json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            "bos_token_id": 1, "eos_token_id": 2,
        }),
    };
    let mut complete = config.clone();
    if let (Some(fields), Value::Object(defaults)) = (complete.as_object_mut(), defaults) {
        for (key, value) in defaults {
            fields.entry(key).or_insert(value);
        }
    }
    complete
}

/// The table of word embeddings.
pub(super) const fn embeddings(family: LanguageFamily) -> &'static str {
    match family {
        LanguageFamily::Opt => "model.decoder.embed_tokens.weight",
        LanguageFamily::T5 => "shared.weight",
        LanguageFamily::Llama => "model.embed_tokens.weight",
    }
}

/// Whether these names (without a prefix) are a language model's.
pub(super) fn is_language(infos: &Infos) -> bool {
    let tables =
        ["model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight", "model.embed_tokens.weight"];
    tables.iter().any(|name| infos.contains_key(*name)) || infos.contains_key("shared.weight")
}

/// Takes a language model's file (names without `prefix`, which stands before them in the source) as it is, but for
/// copies, constants, and the `model.` that old OPT files lack.
pub(super) fn into_ours(infos: &Infos, prefix: &str, family: LanguageFamily, is_tied: bool) -> Language {
    let mut language = Language { planned: Vec::new(), copies: Vec::new(), left_out: Vec::new() };
    let table = embeddings(family);
    let body = table.strip_prefix("model.").unwrap_or(table);
    let is_bare = family != LanguageFamily::T5 && infos.contains_key(body) && !infos.contains_key(table);
    let source_table = format!("{prefix}{}", if is_bare { body } else { table });
    let copies: BTreeSet<&str> = match family {
        LanguageFamily::T5 => ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"].into(),
        _ => BTreeSet::new(),
    };
    for (name, info) in infos {
        let full = format!("{prefix}{name}");
        if copies.contains(name.as_str()) || is_tied && name == "lm_head.weight" {
            language.copies.push((full, source_table.clone()));
        } else if is_constant(name) {
            language.left_out.push(full);
        } else {
            let ours =
                if is_bare && name != "lm_head.weight" { format!("model.{name}") } else { name.clone() };
            language.planned.push(Planned { name: ours, info: info.clone(), recipe: Recipe::Copy(full) });
        }
    }
    language
}

/// Buffers, and the bias that early T5 files had for cross-attention and nobody reads.
fn is_constant(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with("embed_positions.position_ids")
        || name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
}

/// Whether head and embeddings are one table (transformers' defaults per family).
pub(super) fn is_tied(config: &Value, family: LanguageFamily, infos: &Infos) -> bool {
    // transformers 5 writes true for every T5; the file decides, as transformers does when it loads
    if family == LanguageFamily::T5 {
        return !infos.contains_key("lm_head.weight");
    }
    config["tie_word_embeddings"].as_bool().unwrap_or(family == LanguageFamily::Opt)
}

#[derive(Deserialize)]
struct Opt {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    ffn_dim: usize,
    max_position_embeddings: usize,
    word_embed_proj_dim: Option<usize>,
    do_layer_norm_before: Option<bool>,
}

#[derive(Deserialize)]
struct Llama {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
}

#[derive(Deserialize)]
struct T5 {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    relative_attention_num_buckets: Option<usize>,
    feed_forward_proj: Option<String>,
}

/// Names and sizes of the model that `config` describes; the head is a tensor of its own unless `is_tied`.
///
/// # Errors
/// What is missing in `config`.
pub(super) fn expected(config: &Value, family: LanguageFamily, is_tied: bool) -> Result<Expected, String> {
    let parsed = |error: serde_json::Error| error.to_string();
    let (mut expected, head) = match family {
        LanguageFamily::Opt => {
            let sizes: Opt = serde_json::from_value(config.clone()).map_err(parsed)?;
            let embedding = sizes.word_embed_proj_dim.unwrap_or(sizes.hidden_size);
            let head = [sizes.vocab_size, embedding];
            (opt(&sizes, embedding), head)
        }
        LanguageFamily::Llama => {
            let sizes: Llama = serde_json::from_value(config.clone()).map_err(parsed)?;
            (llama(&sizes), [sizes.vocab_size, sizes.hidden_size])
        }
        LanguageFamily::T5 => {
            let sizes: T5 = serde_json::from_value(config.clone()).map_err(parsed)?;
            (t5(&sizes), [sizes.vocab_size, sizes.d_model])
        }
    };
    expected.insert(embeddings(family).to_owned(), head.to_vec());
    if !is_tied {
        expected.insert("lm_head.weight".to_owned(), head.to_vec());
    }
    Ok(expected)
}

fn opt(sizes: &Opt, embedding: usize) -> Expected {
    let width = sizes.hidden_size;
    let mut expected = Expected::new();
    let positions = vec![sizes.max_position_embeddings + 2, width];
    expected.insert("model.decoder.embed_positions.weight".to_owned(), positions);
    if embedding != width {
        expected.insert("model.decoder.project_in.weight".to_owned(), vec![width, embedding]);
        expected.insert("model.decoder.project_out.weight".to_owned(), vec![embedding, width]);
    }
    for layer in (0..sizes.num_hidden_layers).map(|number| format!("model.decoder.layers.{number}")) {
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            expect_linear(&mut expected, &format!("{layer}.self_attn.{part}"), [width, width]);
        }
        expect_norm(&mut expected, &format!("{layer}.self_attn_layer_norm"), width);
        expect_linear(&mut expected, &format!("{layer}.fc1"), [sizes.ffn_dim, width]);
        expect_linear(&mut expected, &format!("{layer}.fc2"), [width, sizes.ffn_dim]);
        expect_norm(&mut expected, &format!("{layer}.final_layer_norm"), width);
    }
    if sizes.do_layer_norm_before.unwrap_or(true) {
        expect_norm(&mut expected, "model.decoder.final_layer_norm", width);
    }
    expected
}

fn llama(sizes: &Llama) -> Expected {
    let width = sizes.hidden_size;
    let head = sizes.head_dim.unwrap_or(width / sizes.num_attention_heads.max(1));
    let queries = sizes.num_attention_heads * head;
    let keys = sizes.num_key_value_heads.unwrap_or(sizes.num_attention_heads) * head;
    let inner = sizes.intermediate_size;
    let mut expected = Expected::from([("model.norm.weight".to_owned(), vec![width])]);
    for layer in (0..sizes.num_hidden_layers).map(|number| format!("model.layers.{number}")) {
        for (part, shape) in [
            ("self_attn.q_proj", vec![queries, width]),
            ("self_attn.k_proj", vec![keys, width]),
            ("self_attn.v_proj", vec![keys, width]),
            ("self_attn.o_proj", vec![width, queries]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
        ] {
            expected.insert(format!("{layer}.{part}.weight"), shape);
        }
    }
    expected
}

fn t5(sizes: &T5) -> Expected {
    let mut expected = Expected::new();
    let decoders = sizes.num_decoder_layers.unwrap_or(sizes.num_layers);
    for (stack, layers) in [("encoder", sizes.num_layers), ("decoder", decoders)] {
        expected.insert(format!("{stack}.final_layer_norm.weight"), vec![sizes.d_model]);
        let buckets = sizes.relative_attention_num_buckets.unwrap_or(32);
        let bias = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        expected.insert(bias, vec![buckets, sizes.num_heads]);
        for block in (0..layers).map(|number| format!("{stack}.block.{number}.layer")) {
            t5_block(&mut expected, sizes, &block, stack == "decoder");
        }
    }
    expected
}

fn t5_block(expected: &mut Expected, sizes: &T5, block: &str, is_decoder: bool) {
    let (width, inner) = (sizes.d_model, sizes.num_heads * sizes.d_kv);
    let mut branches = vec!["SelfAttention"];
    branches.extend(is_decoder.then_some("EncDecAttention"));
    for (number, attention) in branches.iter().enumerate() {
        for part in ["q", "k", "v"] {
            expected.insert(format!("{block}.{number}.{attention}.{part}.weight"), vec![inner, width]);
        }
        expected.insert(format!("{block}.{number}.{attention}.o.weight"), vec![width, inner]);
        expected.insert(format!("{block}.{number}.layer_norm.weight"), vec![width]);
    }
    let last = format!("{block}.{}", branches.len());
    let is_gated = sizes.feed_forward_proj.as_deref().is_some_and(|kind| kind.starts_with("gated"));
    let inputs: &[&str] = if is_gated { &["wi_0", "wi_1"] } else { &["wi"] };
    for part in inputs {
        expected.insert(format!("{last}.DenseReluDense.{part}.weight"), vec![sizes.d_ff, width]);
    }
    expected.insert(format!("{last}.DenseReluDense.wo.weight"), vec![width, sizes.d_ff]);
    expected.insert(format!("{last}.layer_norm.weight"), vec![width]);
}

/// `LlamaForCausalLM`'s names and row order out of a GGUF. Second: names of no Llama.
///
/// # Errors
/// [`checkpoint::CheckpointError`] when the file does not say how many heads it has.
pub(super) fn from_gguf(
    infos: &Infos,
    gguf: &checkpoint::foreign::gguf::GgufFile,
) -> Result<(Vec<Planned>, Vec<String>), checkpoint::CheckpointError> {
    use checkpoint::foreign::llama;
    let (mut planned, mut unknown) = (Vec::new(), Vec::new());
    for (name, Info { dtype, shape }) in infos {
        let Some(ours) = llama::hugging_face_name(name) else {
            unknown.push(name.clone());
            continue;
        };
        let recipe = match llama::turned_heads(gguf, name)? {
            Some(heads) => Recipe::HalfSplit { of: name.clone(), heads },
            None => Recipe::Copy(name.clone()),
        };
        planned.push(Planned { name: ours, info: Info { dtype: *dtype, shape: shape.clone() }, recipe });
    }
    Ok((planned, unknown))
}
