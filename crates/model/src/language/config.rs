//! Sizes of a language model, read from the `config.json` of its Hugging Face folder.

use serde::Deserialize;
use serde_json::Value;

use super::t5::T5Config;

/// Which language model, with its sizes. The set is closed: a new one is a file in this folder.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// OPT (Zhang et al. 2022).
    Opt(OptConfig),
    /// Llama (Touvron et al. 2023) and what is built like it, e.g. SmolLM2.
    Llama(LlamaConfig),
    /// T5 (Raffel et al. 2020) and Flan-T5.
    T5(T5Config),
}

/// `OPTConfig`; fields and defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are transformers' own")]
pub struct OptConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub ffn_dim: i64,
    pub num_attention_heads: i64,
    pub max_position_embeddings: i64,
    /// Width of the embeddings where it is not `hidden_size` (OPT-350m).
    #[serde(default)]
    pub word_embed_proj_dim: Option<i64>,
    #[serde(default = "default_true")]
    pub do_layer_norm_before: bool,
    #[serde(default = "default_true")]
    pub tie_word_embeddings: bool,
}

/// `LlamaConfig`; fields and defaults are transformers'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are transformers' own")]
pub struct LlamaConfig {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// Heads of keys and values, each shared by several query heads; default: as many as those.
    #[serde(default)]
    pub num_key_value_heads: Option<i64>,
    /// K; default: `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: Option<i64>,
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary wave lengths.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

/// A `config.json` that we cannot build a model from: use another model, or correct the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No JSON, or a size is missing.
    #[error("config.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another architecture, or a variant of one we know.
    #[error("config.json: {key} = {value} is not supported; we have {supported}")]
    Unsupported {
        /// The key that decides.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What could stand there.
        supported: &'static str,
    },
}

impl LanguageConfig {
    /// Reads `config.json` of an OPT, Llama or T5; of a whole BLIP-2 it reads `text_config`.
    ///
    /// # Errors
    /// [`ConfigError`] for text that is no such file, and for variants whose numbers we would get wrong.
    pub fn from_hf_json(text: &str) -> Result<Self, ConfigError> {
        let mut value: Value = serde_json::from_str(text)?;
        if value["model_type"] == "blip-2" {
            value = value["text_config"].take();
        }
        match value["model_type"].as_str() {
            Some("opt") => {
                refuse_unless(&value, "activation_function", "relu", &["relu"].map(Value::from))?;
                refuse_unless(&value, "enable_bias", "true", &[true.into()])?;
                refuse_unless(&value, "layer_norm_elementwise_affine", "true", &[true.into()])?;
                refuse_unless(&value, "_remove_final_layer_norm", "false", &[false.into()])?;
                Ok(Self::Opt(serde_json::from_value(value)?))
            }
            Some("llama") => {
                refuse_unless(&value, "hidden_act", "silu", &["silu"].map(Value::from))?;
                refuse_unless(&value, "attention_bias", "false", &[false.into()])?;
                refuse_unless(&value, "mlp_bias", "false", &[false.into()])?;
                refuse_unless(&value, "rope_scaling", "null", &[])?;
                move_rope_parameters(&mut value)?;
                Ok(Self::Llama(serde_json::from_value(value)?))
            }
            Some("t5") => Ok(Self::T5(T5Config::from_value(value)?)),
            _ => Err(unsupported("model_type", &value["model_type"], "opt, llama, t5")),
        }
    }

    /// Width of the embeddings that the model reads: what `language_projection` has to produce.
    #[must_use]
    pub fn hidden_size(&self) -> i64 {
        match self {
            Self::Opt(opt) => opt.embedding_size(),
            Self::Llama(llama) => llama.hidden_size,
            Self::T5(t5) => t5.d_model,
        }
    }

    /// Number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> i64 {
        match self {
            Self::Opt(opt) => opt.vocab_size,
            Self::Llama(llama) => llama.vocab_size,
            Self::T5(t5) => t5.vocab_size,
        }
    }

    /// Whether the model reads a prefix in an encoder, and is trained to say the rest (T5).
    #[must_use]
    pub fn is_encoder_decoder(&self) -> bool {
        matches!(self, Self::T5(_))
    }

    /// Whether the model is an OPT, whose texts begin with `</s>` and, after LAVIS, end with a newline.
    #[must_use]
    pub fn is_opt(&self) -> bool {
        matches!(self, Self::Opt(_))
    }
}

impl OptConfig {
    pub(super) fn embedding_size(&self) -> i64 {
        self.word_embed_proj_dim.unwrap_or(self.hidden_size)
    }
}

impl LlamaConfig {
    pub(super) fn key_value_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(super) fn head_size(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }
}

/// Since transformers 5 the wave lengths stand in `rope_parameters`.
fn move_rope_parameters(value: &mut Value) -> Result<(), ConfigError> {
    let parameters = value["rope_parameters"].take();
    refuse_unless(&parameters, "rope_type", "default", &["default"].map(Value::from))?;
    if let Some(theta) = parameters["rope_theta"].as_f64() {
        value["rope_theta"] = theta.into();
    }
    Ok(())
}

/// A key that is missing or null has its default, which is supported.
fn refuse_unless(
    value: &Value,
    key: &'static str,
    supported: &'static str,
    allowed: &[Value],
) -> Result<(), ConfigError> {
    let found = &value[key];
    if found.is_null() || allowed.contains(found) { Ok(()) } else { Err(unsupported(key, found, supported)) }
}

pub(super) fn unsupported(key: &'static str, value: &Value, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { key, value: value.to_string(), supported }
}

fn default_true() -> bool {
    true
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "rope_theta": 100000, "rope_scaling": null, "tie_word_embeddings": true}"#;

    #[test]
    fn llama_of_either_generation_of_transformers() {
        let LanguageConfig::Llama(old) = LanguageConfig::from_hf_json(LLAMA).unwrap() else { panic!() };
        assert_eq!((old.rope_theta, old.key_value_heads(), old.head_size()), (1e5, 3, 64));
        let new = LLAMA.replace(
            r#""rope_theta": 100000"#,
            r#""rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}"#,
        );
        assert_eq!(LanguageConfig::from_hf_json(&new).unwrap(), LanguageConfig::Llama(old));
    }

    #[test]
    fn opt_inside_a_blip2_and_alone() {
        let opt = r#"{"model_type": "opt", "vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "ffn_dim": 96,
            "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}"#;
        let alone = LanguageConfig::from_hf_json(opt).unwrap();
        assert_eq!((alone.hidden_size(), alone.vocab_size()), (32, 64));
        let whole = format!(r#"{{"model_type": "blip-2", "text_config": {opt}}}"#);
        assert_eq!(LanguageConfig::from_hf_json(&whole).unwrap(), alone);
    }

    #[test]
    fn what_we_would_get_wrong_is_refused_by_its_key() {
        for (from, to, key) in [
            (r#""rope_scaling": null"#, r#""rope_scaling": {"rope_type": "llama3"}"#, "rope_scaling"),
            (r#""rms_norm_eps": 1e-5"#, r#""attention_bias": true"#, "attention_bias"),
            (r#""model_type": "llama""#, r#""model_type": "gpt2""#, "model_type"),
            (r#""rope_theta": 100000"#, r#""rope_parameters": {"rope_type": "yarn"}"#, "rope_type"),
        ] {
            let error = LanguageConfig::from_hf_json(&LLAMA.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(LanguageConfig::from_hf_json(r#"{"model_type": "llama"}"#).is_err());
        assert!(LanguageConfig::from_hf_json("[").is_err());
    }
}
