//! Sizes of a T5, as its `config.json` has them.

use serde::Deserialize;
use serde_json::Value;

use crate::language::config::{ConfigError, unsupported};

const ACTIVATIONS: &str = "relu, gelu, gelu_new, silu, and gated- before one of them";

/// `T5Config`; fields and defaults are transformers'.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are transformers' own")]
pub struct T5Config {
    pub vocab_size: i64,
    pub d_model: i64,
    pub d_kv: i64,
    pub d_ff: i64,
    pub num_layers: i64,
    pub num_decoder_layers: i64,
    pub num_heads: i64,
    pub relative_attention_num_buckets: i64,
    pub relative_attention_max_distance: i64,
    pub layer_norm_epsilon: f64,
    /// Two inner projections, of which one gates the other (T5 1.1, Flan-T5).
    pub is_gated: bool,
    pub dense_act_fn: Activation,
    /// The head is the embeddings' table. A file that has a head of its own is believed all the same.
    pub tie_word_embeddings: bool,
    /// States are multiplied by `d_model ** -0.5` before the head (T5 1.0, whose head is tied).
    pub scale_decoder_outputs: bool,
    /// What the decoder reads before the first token.
    pub decoder_start_token_id: i64,
}

/// Between the two layers of a feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// The exact one, by the error function. LAVIS runs Flan-T5 with it.
    Gelu,
    /// Its approximation by tanh: Flan-T5's own.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// x * sigmoid(x).
    #[serde(alias = "swish")]
    Silu,
}

/// What stands in the file.
#[derive(Deserialize)]
struct File {
    vocab_size: i64,
    d_model: i64,
    d_kv: i64,
    d_ff: i64,
    num_layers: i64,
    num_decoder_layers: Option<i64>,
    num_heads: i64,
    #[serde(default = "default_buckets")]
    relative_attention_num_buckets: i64,
    #[serde(default = "default_distance")]
    relative_attention_max_distance: i64,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "default_feed_forward")]
    feed_forward_proj: String,
    dense_act_fn: Option<String>,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    #[serde(default)]
    decoder_start_token_id: i64,
}

impl T5Config {
    /// Reads the parsed `config.json`.
    pub(in crate::language) fn from_value(value: Value) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_value(value)?;
        let (is_gated, named) = match file.feed_forward_proj.strip_prefix("gated-") {
            // transformers' own exception: the checkpoints that say so were trained with the approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, file.feed_forward_proj.as_str()),
        };
        let (key, name) = match &file.dense_act_fn {
            Some(name) => ("dense_act_fn", name.as_str()),
            None => ("feed_forward_proj", named),
        };
        let dense_act_fn = serde_json::from_value(name.into())
            .map_err(|_| unsupported(key, &Value::from(name), ACTIVATIONS))?;
        let tie_word_embeddings = file.tie_word_embeddings.unwrap_or(true);
        Ok(Self {
            vocab_size: file.vocab_size,
            d_model: file.d_model,
            d_kv: file.d_kv,
            d_ff: file.d_ff,
            num_layers: file.num_layers,
            num_decoder_layers: file.num_decoder_layers.unwrap_or(file.num_layers),
            num_heads: file.num_heads,
            relative_attention_num_buckets: file.relative_attention_num_buckets,
            relative_attention_max_distance: file.relative_attention_max_distance,
            layer_norm_epsilon: file.layer_norm_epsilon,
            is_gated,
            dense_act_fn,
            tie_word_embeddings,
            scale_decoder_outputs: file.scale_decoder_outputs.unwrap_or(tie_word_embeddings),
            decoder_start_token_id: file.decoder_start_token_id,
        })
    }
}

fn default_buckets() -> i64 {
    32
}

fn default_distance() -> i64 {
    128
}

fn default_eps() -> f64 {
    1e-6
}

fn default_feed_forward() -> String {
    "relu".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::LanguageConfig;

    fn read(more: &str) -> Result<T5Config, ConfigError> {
        let text = format!(
            r#"{{"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8,
            "num_heads": 6{more}}}"#
        );
        match LanguageConfig::from_hf_json(&text)? {
            LanguageConfig::T5(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_t5_is_what_a_file_says_that_says_little() {
        let config = read("").unwrap();
        assert_eq!((config.is_gated, config.dense_act_fn), (false, Activation::Relu));
        assert!(config.tie_word_embeddings && config.scale_decoder_outputs);
        let sizes = (config.num_decoder_layers, config.relative_attention_num_buckets);
        assert_eq!((sizes, config.relative_attention_max_distance), ((8, 32), 128));
    }

    #[test]
    fn flan_t5_of_the_hub_and_of_lavis() {
        let flan = r#", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false"#;
        let config = read(flan).unwrap();
        assert_eq!((config.is_gated, config.dense_act_fn), (true, Activation::GeluNew));
        assert!(!config.tie_word_embeddings && !config.scale_decoder_outputs);
        let lavis = read(&format!(r#"{flan}, "dense_act_fn": "gelu""#)).unwrap();
        assert_eq!((lavis.is_gated, lavis.dense_act_fn), (true, Activation::Gelu));
        // transformers 5 writes this for a Flan-T5.
        let five = read(r#", "tie_word_embeddings": true, "scale_decoder_outputs": false"#).unwrap();
        assert!(five.tie_word_embeddings && !five.scale_decoder_outputs);
        assert_eq!(read(r#", "feed_forward_proj": "gated-silu""#).unwrap().dense_act_fn, Activation::Silu);
    }

    #[test]
    fn an_activation_that_we_lack_is_refused_by_its_key() {
        for (more, key) in [
            (r#", "dense_act_fn": "mish""#, "dense_act_fn"),
            (r#", "feed_forward_proj": "gated-mish""#, "feed_forward"),
        ] {
            let error = read(more).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("mish") && error.contains("gelu_new"), "{error}");
        }
    }
}
