//! Sizes of the models of a run: what a plan and the trainable parts need to know of weights, before any are read.

use std::fs;
use std::path::{Path, PathBuf};

use data::WordPiece;
use model::{ItgWeighting, LanguageConfig, QformerConfig, Stage1Config, TextBranchConfig};
use monitor::Phase;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{BertSizes, Config, Sharding};
use crate::error::TrainError;
use crate::plan::Plan;

/// Reads a JSON file of a weights folder.
///
/// # Errors
/// [`TrainError::Read`] or [`TrainError::Weights`] naming the file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = fs::read(path).map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| TrainError::Weights { path: path.to_owned(), detail: error.to_string() })
}

/// The BERT that the Q-Former starts from: its folder's `config.json`, or `model.qformer.bert` where that is given.
///
/// # Errors
/// [`TrainError::Read`] when neither is there, [`TrainError::Weights`] when they disagree.
pub(crate) fn bert(config: &Config) -> Result<BertSizes, TrainError> {
    let qformer = &config.model.qformer;
    let path = qformer.init.join("config.json");
    let sizes = match qformer.bert {
        Some(given) if !path.exists() => given,
        given => {
            let found = bert_file(&path)?;
            if let Some(given) = given.filter(|given| *given != found) {
                let detail = format!("holds {found:?}, but model.qformer.bert says {given:?}");
                return Err(TrainError::Weights { path, detail });
            }
            found
        }
    };
    fitting(sizes, config, path)
}

/// The sizes in a BERT's `config.json`, which holds much else.
///
/// # Errors
/// [`TrainError::Read`] or [`TrainError::Weights`] naming the file.
pub(crate) fn bert_file(path: &Path) -> Result<BertSizes, TrainError> {
    let mut all: serde_json::Map<String, serde_json::Value> = read_json(path)?;
    all.retain(|key, _| BertSizes::KEYS.contains(&key.as_str()));
    serde_json::from_value(all.into())
        .map_err(|error| TrainError::Weights { path: path.to_owned(), detail: error.to_string() })
}

/// Sizes that a Q-Former can be made of, for texts as long as the config wants them.
fn fitting(sizes: BertSizes, config: &Config, path: PathBuf) -> Result<BertSizes, TrainError> {
    let BertSizes { hidden_size, num_attention_heads, max_position_embeddings, .. } = sizes;
    let counts = [
        hidden_size,
        num_attention_heads,
        sizes.num_hidden_layers,
        sizes.intermediate_size,
        sizes.vocab_size,
    ];
    let detail = if counts.iter().any(|&count| count < 1) {
        format!("holds {sizes:?}, of which every number must be at least 1")
    } else if hidden_size % num_attention_heads != 0 {
        format!("hidden_size {hidden_size} is no multiple of num_attention_heads {num_attention_heads}")
    } else if config.data.max_text_tokens as i64 > max_position_embeddings {
        let wanted = config.data.max_text_tokens;
        format!("reads texts of up to {max_position_embeddings} tokens, but data.max_text_tokens is {wanted}")
    } else {
        return Ok(sizes);
    };
    Err(TrainError::Weights { path, detail })
}

/// What a language model's `config.json` tells: its sizes, and the tokens that frame a text.
#[derive(Debug)]
pub(crate) struct LanguageFile {
    pub sizes: LanguageConfig,
    pub bos_token_id: Option<i64>,
    pub eos_token_id: i64,
}

#[derive(Deserialize)]
struct Specials {
    bos_token_id: Option<i64>,
    eos_token_id: Ends,
}

/// Ids that end a text, as transformers writes them: one, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Ends {
    One(i64),
    Several(Vec<i64>),
}

impl Ends {
    pub fn ids(&self) -> &[i64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

/// The language model's `config.json`, which must be as wide as `model.language.hidden_size` says where that is given, and
/// have an encoder where `model.language.prefix_split` gives it something to read.
///
/// # Errors
/// [`TrainError::Read`], or [`TrainError::Weights`] for a model that we do not have or that is not so.
pub(crate) fn language(config: &Config) -> Result<LanguageFile, TrainError> {
    let language = &config.model.language;
    let path = language.weights.join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| TrainError::Read { path: path.clone(), source })?;
    let refuse = |detail: String| TrainError::Weights { path: path.clone(), detail };
    let found = LanguageConfig::from_hf_json(&text).map_err(|error| refuse(error.to_string()))?;
    let Specials { bos_token_id, eos_token_id } =
        serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    // Of several the first ends captions.
    let first = eos_token_id.ids().first();
    let eos_token_id = *first.ok_or_else(|| refuse("eos_token_id is an empty list".to_owned()))?;
    if language.prefix_split.is_some() && !found.is_encoder_decoder() {
        return Err(refuse(
            "is a decoder-only model, which says captions whole; leave out model.language.prefix_split, or name a T5"
                .into(),
        ));
    }
    match language.hidden_size {
        Some(given) if given != found.hidden_size() => Err(refuse(format!(
            "is {} wide, but model.language.hidden_size says {given}",
            found.hidden_size()
        ))),
        _ => Ok(LanguageFile { sizes: found, bos_token_id, eos_token_id }),
    }
}

/// L, the width of the language model's embeddings: as its `config.json` says, or the config where that is not here.
///
/// # Errors
/// As [`language`].
fn language_width(config: &Config) -> Result<i64, TrainError> {
    match config.model.language.hidden_size {
        Some(given) if !config.model.language.weights.join("config.json").exists() => Ok(given),
        _ => Ok(language(config)?.sizes.hidden_size()),
    }
}

/// The line of a plan that tells what a rank holds of the language model; none where its `config.json` is not here.
///
/// # Errors
/// As [`language`].
pub(crate) fn describe_language(plan: &Plan) -> Result<Option<String>, TrainError> {
    if !plan.config.model.language.weights.join("config.json").exists() {
        return Ok(None);
    }
    let bytes = language(&plan.config)?.sizes.frozen_bytes(plan.language_kind);
    let megabytes = |bytes: i64| format!("{:.1} MB", 1e-6 * bytes as f64);
    let ranks = plan.world.world_size as i64;
    Ok(Some(match plan.config.distributed.sharding {
        Sharding::None => {
            format!("  frozen language model: {} on each rank", megabytes(bytes.whole()))
        }
        Sharding::Frozen => format!(
            "  frozen language model: {} of {} on each rank, and {} for gathered layers beside",
            megabytes(bytes.parted(ranks)),
            megabytes(bytes.whole()),
            megabytes(bytes.gathered(ranks)),
        ),
    }))
}

/// The words of stage 1, `[DEC]` among them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vocabulary {
    size: i64,
    decoder_start_id: i64,
}

impl From<&WordPiece> for Vocabulary {
    fn from(wordpiece: &WordPiece) -> Self {
        Self { size: wordpiece.vocab_size() as i64, decoder_start_id: wordpiece.special().bos }
    }
}

impl Vocabulary {
    /// Of the folder's `vocab.txt`; where that is not here, BERT's words with `[DEC]` behind them.
    fn of(config: &Config, bert: &BertSizes) -> Result<Self, TrainError> {
        let path = config.model.qformer.init.join("vocab.txt");
        match path.exists() {
            true => Ok(Self::from(&WordPiece::from_vocab(&path)?)),
            false => Ok(Self { size: bert.vocab_size + 1, decoder_start_id: bert.vocab_size }),
        }
    }
}

/// The Q-Former of a phase: only stage 1 has a text branch.
pub(crate) fn qformer(
    config: &Config,
    bert: &BertSizes,
    vocabulary: Vocabulary,
    phase: Phase,
) -> QformerConfig {
    let qformer = &config.model.qformer;
    let text = (phase == Phase::Stage1).then_some(TextBranchConfig {
        vocab_size: vocabulary.size,
        max_position_embeddings: bert.max_position_embeddings,
        decoder_start_id: vocabulary.decoder_start_id,
    });
    QformerConfig {
        hidden_size: bert.hidden_size,
        num_hidden_layers: bert.num_hidden_layers,
        num_attention_heads: bert.num_attention_heads,
        intermediate_size: bert.intermediate_size,
        cross_attention_freq: qformer.cross_attention_freq,
        num_query_tokens: qformer.num_query_tokens,
        encoder_hidden_size: config.model.vision.architecture.width(),
        layer_norm_eps: bert.layer_norm_eps,
        dropout: qformer.dropout,
        gradient_checkpointing: qformer.gradient_checkpointing,
        text,
    }
}

/// Stage 1 around its Q-Former.
pub(crate) fn stage1(config: &Config, bert: &BertSizes, vocabulary: Vocabulary) -> Stage1Config {
    Stage1Config {
        qformer: qformer(config, bert, vocabulary, Phase::Stage1),
        projection_size: config.model.qformer.projection_size,
        negative_weighting: config.model.qformer.negative_weighting,
        itg_weighting: ItgWeighting::GlobalTokens,
    }
}

/// Stage 1 as the config sizes it, without any weights: for measuring.
///
/// # Errors
/// As [`bert`].
pub(crate) fn planned_stage1(config: &Config) -> Result<Stage1Config, TrainError> {
    let bert = bert(config)?;
    Ok(stage1(config, &bert, Vocabulary::of(config, &bert)?))
}

/// Trainable parameters of a phase.
///
/// # Errors
/// As [`bert`] and [`language_width`].
pub(crate) fn trainable_parameters(config: &Config, phase: Phase) -> Result<i64, TrainError> {
    match phase {
        Phase::Stage1 => Ok(planned_stage1(config)?.parameters()),
        _ => {
            let bert = bert(config)?;
            let vocabulary = Vocabulary::of(config, &bert)?;
            let qformer = qformer(config, &bert, vocabulary, phase);
            Ok(model::stage2_parameters(&qformer, language_width(config)?))
        }
    }
}
