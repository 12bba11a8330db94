//! The JSON files of a Hugging Face folder (transformers 5).

use std::path::Path;

use model::vision::VitConfig;
use serde_json::{Map, Value, json};

use super::bridge::{BridgeSizes, StageKind};
use super::hf::Text;
use super::vision::{VisionFamily, config_json};
use crate::config::BertSizes;
use crate::error::TrainError;
use crate::names::LanguageFamily;
use crate::sizes::read_json;

/// What the files tell of the model.
pub(super) struct Facts<'a> {
    pub sizes: &'a BridgeSizes,
    pub bert: &'a BertSizes,
    pub dropout: f64,
    pub vit: &'a VitConfig,
    pub transform: Option<&'a data::TransformConfig>,
}

/// `Blip2Config`; `text`: the language model's half, in stage 2.
pub(super) fn config(facts: &Facts<'_>, text: Option<&Text>, dtype: &str) -> Value {
    let mut config = json!({
        "architectures": [if text.is_some() { "Blip2ForConditionalGeneration" } else { "Blip2ForImageTextRetrieval" }],
        "model_type": "blip-2",
        "dtype": dtype,
        "image_text_hidden_size": facts.sizes.projection_size.unwrap_or(256),
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "num_query_tokens": facts.sizes.num_query_tokens,
        "qformer_config": qformer(facts, text.is_none()),
        "vision_config": config_json(VisionFamily::Eva, facts.vit),
    });
    if let Some(Text { config: text, image_token, .. }) = text {
        let is_encoder_decoder = text["model_type"] == "t5";
        config["text_config"] = text.clone();
        config["image_token_index"] = (*image_token).into();
        config["use_decoder_only_language_model"] = (!is_encoder_decoder).into();
        config["is_encoder_decoder"] = is_encoder_decoder.into();
        config["tie_word_embeddings"] = text["tie_word_embeddings"].clone();
    }
    config
}

fn qformer(facts: &Facts<'_>, has_text: bool) -> Value {
    let Facts { sizes, bert, .. } = facts;
    let [words, positions] = sizes.text.unwrap_or([
        bert.vocab_size.unsigned_abs() as usize,
        bert.max_position_embeddings.unsigned_abs() as usize,
    ]);
    json!({
        "model_type": "blip_2_qformer",
        "vocab_size": words,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": bert.num_attention_heads,
        "intermediate_size": sizes.intermediate_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": facts.dropout,
        "attention_probs_dropout_prob": facts.dropout,
        "max_position_embeddings": positions,
        "initializer_range": 0.02,
        "layer_norm_eps": bert.layer_norm_eps,
        "pad_token_id": 0,
        "cross_attention_frequency": sizes.cross_attention_frequency,
        "encoder_hidden_size": sizes.encoder_hidden_size,
        "use_qformer_text_input": has_text,
    })
}

/// A language model's `config.json` as a part of ours: without what says where and by whom it was written.
pub(super) fn text_config(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        for key in ["architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"] {
            fields.remove(key);
        }
    }
    config
}

/// A token that no caption holds: its row can stand for another one that must never be chosen.
pub(super) fn seldom_token(config: &Value) -> usize {
    let id = |key: &str| config[key].as_u64().and_then(|id| usize::try_from(id).ok());
    let eos = id("eos_token_id");
    let others = [id("pad_token_id"), id("unk_token_id"), id("bos_token_id")];
    let other = others.into_iter().flatten().find(|id| Some(*id) != eos);
    // of two equal scores the lower id wins: the end of a text stays the end
    other.or(eos).unwrap_or(0)
}

/// `BlipImageProcessor`: squashed to a square, bicubic, as LAVIS evaluates.
pub(super) fn preprocessor(facts: &Facts<'_>) -> Value {
    let default = data::TransformConfig::default();
    let transform = facts.transform.unwrap_or(&default);
    let side = facts.transform.map_or(facts.vit.img_size, |transform| transform.image_size as i64);
    json!({
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": { "height": side, "width": side },
        "resample": 3,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": transform.mean.map(shortest),
        "image_std": transform.std.map(shortest),
    })
}

/// The double that a 32-bit float's shortest decimal form names.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// `Blip2Processor`. Only a language model has places for images in its text.
pub(super) fn processor(facts: &Facts<'_>, stage: StageKind) -> Value {
    match stage {
        StageKind::One => json!({ "processor_class": "Blip2Processor" }),
        StageKind::Two => {
            json!({ "processor_class": "Blip2Processor", "num_query_tokens": facts.sizes.num_query_tokens })
        }
    }
}

/// `generation_config.json`: the language model's own where it has one, and the ids of its special tokens.
pub(super) fn generation(text: &Text) -> Value {
    let own: Option<Value> = read_json(&text.folder.join("generation_config.json")).ok();
    let mut fields = own.and_then(|own| own.as_object().cloned()).unwrap_or_default();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        let id = &text.config[key];
        if !id.is_null() {
            fields.entry(key).or_insert_with(|| id.clone());
        }
    }
    if text.family == LanguageFamily::T5 {
        fields.entry("decoder_start_token_id").or_insert_with(|| 0.into());
    }
    if text.family == LanguageFamily::Opt {
        fields.insert("eos_token_id".to_owned(), text.config["eos_token_id"].clone());
    }
    fields.remove("transformers_version");
    Value::Object(fields)
}

/// A `tokenizer.json` of which only the ids matter here.
pub(super) struct Tokenizer {
    pub json: Value,
}

impl Tokenizer {
    /// `None` when the folder has none.
    ///
    /// # Errors
    /// [`TrainError::Weights`] when it is no JSON.
    pub fn read(path: &Path) -> Result<Option<Self>, TrainError> {
        match path.is_file() {
            true => Ok(Some(Self { json: read_json(path)? })),
            false => Ok(None),
        }
    }

    fn added(&self) -> impl Iterator<Item = (i64, &str)> {
        let tokens = self.json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        tokens.iter().filter_map(|token| Some((token["id"].as_i64()?, token["content"].as_str()?)))
    }

    /// Ids of the model's own vocabulary: a map, or unigram's list.
    fn vocabulary(&self) -> Vec<(i64, &str)> {
        let vocabulary = &self.json["model"]["vocab"];
        if let Some(map) = vocabulary.as_object() {
            return map.iter().filter_map(|(token, id)| Some((id.as_i64()?, token.as_str()))).collect();
        }
        let list = vocabulary.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().filter_map(|(id, entry)| Some((id as i64, entry[0].as_str()?))).collect()
    }

    /// The first id that is free.
    pub fn size(&self) -> i64 {
        let ids = self.added().chain(self.vocabulary()).map(|(id, _)| id);
        ids.max().map_or(0, |last| last + 1)
    }

    /// The id of `<image>`.
    pub fn image_token(&self) -> Option<i64> {
        self.added().find(|(_, content)| *content == "<image>").map(|(id, _)| id)
    }

    fn text(&self, id: &Value) -> Option<String> {
        let wanted = id.as_i64()?;
        let found = self.added().chain(self.vocabulary()).find(|(id, _)| *id == wanted);
        found.map(|(_, content)| content.to_owned())
    }

    /// Adds a special token, unless the id has a token.
    pub fn add(&mut self, content: &str, id: i64) {
        let is_taken =
            self.added().chain(self.vocabulary()).any(|(taken, token)| taken == id || token == content);
        if is_taken {
            return;
        }
        let token = json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        match self.json["added_tokens"].as_array_mut() {
            Some(tokens) => tokens.push(token),
            None => self.json["added_tokens"] = json!([token]),
        }
    }
}

/// `tokenizer_config.json` of a language model whose folder has none.
pub(super) fn tokenizer_config(text: &Text, tokenizer: &Tokenizer) -> Value {
    let mut fields = Map::new();
    fields.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    fields.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    if text.family != LanguageFamily::T5 {
        fields.insert("padding_side".to_owned(), "left".into());
    }
    for name in ["bos", "eos", "pad", "unk"] {
        if let Some(token) = tokenizer.text(&text.config[format!("{name}_token_id")]) {
            fields.insert(format!("{name}_token"), token.into());
        }
    }
    Value::Object(fields)
}

/// `tokenizer_config.json` of stage 1: BERT's words and `[DEC]`, which begins a caption.
pub(super) fn bert_tokenizer_config(decoder_start: i64) -> Value {
    let mut added = Map::new();
    added.insert(
        decoder_start.to_string(),
        json!({
            "content": "[DEC]", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
            "special": true,
        }),
    );
    json!({
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": true,
        "bos_token": "[DEC]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
        "added_tokens_decoder": added,
    })
}
