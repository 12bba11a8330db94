//! What an import will write, planned from the source's table of contents: one function for each kind of content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::WeightSource;
use serde_json::{Value, json};

use super::bridge::{self, StageKind};
use super::import::{pretty, vocabularies};
use super::tensors::{Infos, Planned, Problems, Recipe, below};
use super::vision::{self, VisionFamily};
use super::{language, unusable};
use crate::error::TrainError;
use crate::names::{LanguageFamily, LavisEntry, from_lavis, to_lavis};

/// One folder of the result.
#[derive(Default)]
pub(super) struct Component {
    pub planned: Vec<Planned>,
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// Copied under their own names.
    pub copied: Vec<PathBuf>,
}

/// A result before it is written: components by folder, `""` for DEST itself.
#[derive(Default)]
pub(super) struct Parts {
    pub components: BTreeMap<&'static str, Component>,
    pub copies: Vec<(String, String)>,
    pub left_out: Vec<String>,
    pub problems: Problems,
    /// Lines for the user.
    pub notes: Vec<String>,
    /// `[model]`, where a whole BLIP-2 came.
    pub model: Option<Value>,
}

/// What is read from.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    /// Names without the wrapper's prefix.
    pub infos: Infos,
    pub prefix: String,
    /// Hugging Face's `config.json`, where there is one.
    pub config: Option<Value>,
}

pub(super) fn lavis(source: &Source<'_>) -> Result<Parts, TrainError> {
    let mut parts = Parts::default();
    let taken = bridge::from_lavis_state(&source.infos, &source.prefix);
    taken.unknown.into_iter().for_each(|name| parts.problems.unexpected(name));
    parts.copies = taken.copies;
    parts.left_out = taken.left_out;
    let called =
        |name: &str| format!("{}{}", source.prefix, to_lavis(name).unwrap_or_else(|| name.to_owned()));
    let frozen: Infos = source
        .infos
        .iter()
        .filter(|(name, _)| from_lavis(name) == Some(LavisEntry::Frozen))
        .map(|(name, info)| (name.clone(), info.clone()))
        .collect();
    whole(source, taken.bridge, &frozen, ("visual_encoder.", true), &called, &mut parts)?;
    Ok(parts)
}

pub(super) fn hugging_face(source: &Source<'_>) -> Result<Parts, TrainError> {
    const NORM: &str = "vision_model.post_layernorm.";
    let mut parts = Parts::default();
    let is_frozen = |name: &str| {
        name.starts_with("vision_model.") && !name.starts_with(NORM) || name.starts_with("language_model.")
    };
    let (frozen, trained): (Infos, Infos) = source
        .infos
        .iter()
        .map(|(name, info)| (name.clone(), info.clone()))
        .partition(|(name, _)| is_frozen(name));
    let trained = trained.into_iter().filter(|(name, _)| {
        let is_buffer = name.ends_with("position_ids");
        if is_buffer {
            parts.left_out.push(format!("{}{name}", source.prefix));
        }
        !is_buffer
    });
    let planned = trained.map(|(name, info)| {
        let recipe = Recipe::Copy(format!("{}{name}", source.prefix));
        Planned { name, info, recipe }
    });
    let planned: Vec<Planned> = planned.collect();
    let called = |name: &str| name.to_owned();
    // Where there is one of them there must be all.
    let has_extras = planned.iter().any(|planned| bridge::is_extra(&planned.name));
    let is_bare = bridge::stage(&planned) == StageKind::One && !has_extras;
    whole(source, planned, &frozen, ("vision_model.", has_extras), &called, &mut parts)?;
    if is_bare {
        parts.notes.push(
            "a Hugging Face file has neither the temperature nor the LM head of stage 1: a stage 1 that starts from it has fresh ones"
                .to_owned(),
        );
    }
    Ok(parts)
}

/// A whole BLIP-2: trained part, and the frozen ones that are there.
fn whole(
    source: &Source<'_>,
    trained: Vec<Planned>,
    frozen: &Infos,
    (encoder, extras): (&str, bool),
    called: &dyn Fn(&str) -> String,
    parts: &mut Parts,
) -> Result<(), TrainError> {
    let section =
        |name: &str| source.config.as_ref().map(|config| config[name].clone()).filter(Value::is_object);
    let Some(sizes) = bridge::sizes(&trained) else {
        let detail = "the Q-Former's tensors are not all there: its sizes cannot be told from them";
        return Err(unusable(source.path, detail));
    };
    bridge::check(&trained, &sizes, extras, called, &mut parts.problems);
    let Some(facts) = bridge::facts(&sizes, section("qformer_config").as_ref()) else {
        return Err(needs_config(
            source.path,
            &format!("heads of a Q-Former of width {}", sizes.hidden_size),
        ));
    };
    let mut config = bridge_json(&sizes, &facts);
    if let Some(index) = source.config.as_ref().and_then(|config| config["image_token_index"].as_i64()) {
        config["image_token_index"] = index.into();
    }
    let mut model = json!({ "qformer": {
        "init": "bridge", "num_query_tokens": sizes.num_query_tokens,
        "cross_attention_freq": sizes.cross_attention_frequency,
        "projection_size": sizes.projection_size.unwrap_or(256), "dropout": 0.1,
    }});
    let component = Component {
        files: BTreeMap::from([("config.json", pretty(&config))]),
        // a stage 1's vocabulary is the Q-Former's, a stage 2's the language model's
        copied: match bridge::stage(&trained) {
            StageKind::One => vocabularies(source.path),
            StageKind::Two => Vec::new(),
        },
        planned: trained,
    };
    parts.components.insert("bridge", component);
    if let Some(architecture) = whole_vision(source, frozen, encoder, section("vision_config"), parts)? {
        model["vision"] = json!({ "weights": "vision", "architecture": architecture });
    }
    if whole_language(source, frozen, section("text_config"), parts)? {
        model["language"] = json!({ "weights": "language" });
    }
    parts.model = Some(model);
    Ok(())
}

fn whole_vision(
    source: &Source<'_>,
    frozen: &Infos,
    encoder: &str,
    config: Option<Value>,
    parts: &mut Parts,
) -> Result<Option<Value>, TrainError> {
    let (infos, _) = below(frozen, encoder);
    if infos.is_empty() {
        return Ok(None);
    }
    let prefix = format!("{}{encoder}", source.prefix);
    let (component, architecture) = vision_component(source.path, &infos, &prefix, config.as_ref(), parts)?;
    parts.components.insert("vision", component);
    Ok(Some(architecture))
}

fn whole_language(
    source: &Source<'_>,
    frozen: &Infos,
    config: Option<Value>,
    parts: &mut Parts,
) -> Result<bool, TrainError> {
    let prefixes = ["language_model.", "opt_model.", "t5_model.", "llm_model."];
    let found = prefixes.into_iter().find(|prefix| !below(frozen, prefix).0.is_empty());
    let Some(prefix) = found else { return Ok(false) };
    let Some(config) = config else {
        return Err(needs_config(source.path, "sizes of its language model"));
    };
    let (infos, _) = below(frozen, prefix);
    let full = format!("{}{prefix}", source.prefix);
    let mut component = language_component(source.path, &infos, &full, &config, parts)?;
    component.copied = vocabularies(source.path);
    parts.components.insert("language", component);
    Ok(true)
}

pub(super) fn image_encoder(source: &Source<'_>) -> Result<Parts, TrainError> {
    let mut parts = Parts::default();
    let config = source.config.as_ref().map(|config| match &config["vision_config"] {
        Value::Null => config.clone(),
        section => section.clone(),
    });
    let (component, architecture) =
        vision_component(source.path, &source.infos, &source.prefix, config.as_ref(), &mut parts)?;
    parts.notes.push(format!("its architecture, for model.vision.architecture: {architecture}"));
    parts.notes.push(
        "layers there counts the blocks of the file. BLIP-2 takes the features before the last block (paper, section 3.1): of a \
         whole encoder set layers one lower (39 of EVA-CLIP's ViT-g/14, 23 of CLIP's ViT-L/14)"
            .to_owned(),
    );
    parts.components.insert("", component);
    Ok(parts)
}

fn vision_component(
    path: &Path,
    infos: &Infos,
    prefix: &str,
    config: Option<&Value>,
    parts: &mut Parts,
) -> Result<(Component, Value), TrainError> {
    let mut found = vision::into_ours(infos, prefix, None);
    parts.left_out.append(&mut found.left_out);
    let Some(family) = found.family else {
        return Err(unusable(path, "its image encoder is neither EVA's nor CLIP's"));
    };
    if let Some(activation) = vision::foreign_activation(family, config) {
        let detail = format!(
            "its image encoder has the activation {activation}; ours have gelu (EVA) and quick_gelu (OpenAI's CLIP)"
        );
        return Err(unusable(path, detail));
    }
    let Some(vit) = vision::sizes(family, &found.planned, config) else {
        let width = found.planned.iter().find(|planned| planned.name == "embeddings.class_embedding");
        let width = width.and_then(|planned| planned.info.shape.last()).copied().unwrap_or(0);
        return Err(needs_config(path, &format!("sizes and heads of an image encoder of width {width}")));
    };
    let is_lavis = infos.contains_key("pos_embed") || infos.contains_key("positional_embedding");
    let called = |name: &str| {
        let name = if is_lavis { vision::lavis_name(family, name) } else { name.to_owned() };
        format!("{prefix}{name}")
    };
    vision::check(&found, &vit, called, &mut parts.problems);
    let files = BTreeMap::from([("config.json", pretty(&vision::config_json(family, &vit)))]);
    let component = Component { planned: found.planned, files, ..Component::default() };
    Ok((component, architecture_json(family, &vit)))
}

/// `model.vision.architecture` of a config.
fn architecture_json(family: VisionFamily, vit: &model::vision::VitConfig) -> Value {
    serde_json::to_value(family.architecture(vit.clone())).unwrap_or_default()
}

pub(super) fn language_model(source: &Source<'_>) -> Result<Parts, TrainError> {
    let mut parts = Parts::default();
    let Some(config) = &source.config else {
        return Err(needs_config(source.path, "sizes of a language model"));
    };
    let mut component = language_component(source.path, &source.infos, &source.prefix, config, &mut parts)?;
    component.copied = vocabularies(source.path);
    let generation = source.path.join("generation_config.json");
    component.copied.extend(generation.is_file().then_some(generation));
    parts.components.insert("", component);
    Ok(parts)
}

fn language_component(
    path: &Path,
    infos: &Infos,
    prefix: &str,
    config: &Value,
    parts: &mut Parts,
) -> Result<Component, TrainError> {
    let Some(family) = language::family(config) else {
        let detail =
            format!("model_type {} is no language model that we have (opt, t5, llama)", config["model_type"]);
        return Err(unusable(path, detail));
    };
    let config = &language::with_defaults(config, family);
    let is_tied = language::is_tied(config, family, infos);
    let mut found = language::into_ours(infos, prefix, family, is_tied);
    parts.left_out.append(&mut found.left_out);
    parts.copies.append(&mut found.copies);
    compare_language(path, &found.planned, (config, family, is_tied), prefix, &mut parts.problems)?;
    let mut config = config.clone();
    config["tie_word_embeddings"] = is_tied.into();
    let files = BTreeMap::from([("config.json", pretty(&config))]);
    Ok(Component { planned: found.planned, files, ..Component::default() })
}

/// Compares a language model with what its `config.json` says.
pub(super) fn compare_language(
    path: &Path,
    planned: &[Planned],
    (config, family, is_tied): (&Value, LanguageFamily, bool),
    prefix: &str,
    problems: &mut Problems,
) -> Result<(), TrainError> {
    let expected = language::expected(config, family, is_tied)
        .map_err(|error| unusable(path, format!("config.json of the language model: {error}")))?;
    problems.compare(planned, &expected, |name| format!("{prefix}{name}"));
    Ok(())
}

pub(super) fn gguf(source: &Source<'_>, weights: &WeightSource) -> Result<Parts, TrainError> {
    let Some(file) = weights.gguf() else { return Err(unusable(source.path, "is no GGUF file")) };
    let mut parts = Parts::default();
    let dtypes: Vec<_> = source.infos.values().map(|info| info.dtype).collect();
    let is_half = dtypes.iter().all(|dtype| *dtype == checkpoint::Dtype::F16);
    let mut config = checkpoint::foreign::llama::config(file, if is_half { "float16" } else { "float32" })?;
    let (planned, unknown) = language::from_gguf(&source.infos, file)?;
    unknown.into_iter().for_each(|name| parts.problems.unexpected(name));
    let is_tied = !source.infos.contains_key("output.weight");
    config["tie_word_embeddings"] = is_tied.into();
    compare_language(
        source.path,
        &planned,
        (&config, LanguageFamily::Llama, is_tied),
        "",
        &mut parts.problems,
    )?;
    let mut files = BTreeMap::from([
        ("config.json", pretty(&config)),
        ("generation_config.json", pretty(&checkpoint::foreign::llama::special_tokens(file)?)),
    ]);
    match checkpoint::foreign::llama::byte_level_bpe(file) {
        Ok(tokenizer) => drop(files.insert("tokenizer.json", pretty(&tokenizer))),
        Err(error) => {
            parts.notes.push(format!("no tokenizer.json is made, put one beside the weights: {error}"))
        }
    }
    parts.components.insert("", Component { planned, files, ..Component::default() });
    Ok(parts)
}

/// Sizes of the Q-Former under the names of a BERT's `config.json`.
fn bridge_json(sizes: &bridge::BridgeSizes, facts: &bridge::QformerFacts) -> Value {
    // [DEC] is the last word, and ours
    let vocab_size = sizes.text.map_or(30_522, |[words, _]| words.saturating_sub(1));
    json!({
        "model_type": "blip_2_qformer",
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": facts.num_attention_heads,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": sizes.text.map_or(facts.max_position_embeddings, |[_, rows]| rows as i64),
        "vocab_size": vocab_size,
        "layer_norm_eps": facts.layer_norm_eps,
        "cross_attention_frequency": sizes.cross_attention_frequency,
        "encoder_hidden_size": sizes.encoder_hidden_size,
        "num_query_tokens": sizes.num_query_tokens,
    })
}

fn needs_config(path: &Path, what: &str) -> TrainError {
    unusable(path, format!("its tensors do not tell the {what}; name a config.json with --config"))
}
