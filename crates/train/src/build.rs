//! From the plan to models: reads weight folders, makes stages, says what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use data::{LmTokenizer, Rng, Stream, Transform, WordPiece};
use model::{
    ItgWeighting, LanguageConfig, LanguageModel, QformerConfig, Stage1, Stage1Config, Stage2,
    TextBranchConfig, VisionEncoder, Weights,
};
use monitor::Phase;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor, nn, no_grad};

use crate::config::Config;
use crate::error::TrainError;
use crate::features::Encoder;
use crate::pairs::LmCaptions;
use crate::plan::Plan;
use crate::stage::{Stage, random_name};
use crate::tensors;

const WEIGHTS_FILE: &str = "model.safetensors";

/// What both stages are built from.
pub(crate) struct Tools {
    /// The Q-Former's tokenizer.
    pub wordpiece: WordPiece,
    /// How the language model reads captions.
    pub lm_captions: LmCaptions,
    /// Digest of the language model's weights.
    pub language_digest: String,
    language_model: Rc<LanguageModel>,
    bert: BTreeMap<String, Tensor>,
    sizes: BertSizes,
}

/// The fields of a BERT's `config.json` that a Q-Former takes over.
#[derive(Clone, Debug, Deserialize)]
struct BertSizes {
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    max_position_embeddings: i64,
    layer_norm_eps: f64,
}

/// The fields of a language model's `config.json` that a tokenizer needs.
#[derive(Deserialize)]
struct LmSpecials {
    eos_token_id: i64,
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = fs::read(path).map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| TrainError::Weights { path: path.to_owned(), detail: error.to_string() })
}

/// Reads tokenizers, the frozen language model and the weights that the Q-Former starts from.
///
/// # Errors
/// [`TrainError::Read`], [`TrainError::Weights`] or [`TrainError::Data`] naming the file.
pub(crate) fn tools(plan: &Plan) -> Result<Tools, TrainError> {
    let model = &plan.config.model;
    let language_model = language_model(&model.language.weights, plan)?;
    Ok(Tools {
        wordpiece: WordPiece::from_vocab(&model.qformer.init.join("vocab.txt"))?,
        lm_captions: lm_captions(&plan.config)?,
        language_digest: file_digest(&model.language.weights.join(WEIGHTS_FILE))?,
        language_model: Rc::new(language_model),
        bert: tensors::read(&model.qformer.init.join(WEIGHTS_FILE))?,
        sizes: read_json(&model.qformer.init.join("config.json"))?,
    })
}

fn language_model(folder: &Path, plan: &Plan) -> Result<LanguageModel, TrainError> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| TrainError::Read { path: path.clone(), source })?;
    let config = LanguageConfig::from_hf_json(&text)
        .map_err(|error| TrainError::Weights { path, detail: error.to_string() })?;
    let path = folder.join(WEIGHTS_FILE);
    let mut weights = Weights::new(tensors::read(&path)?);
    // Frozen: half precision costs nothing (paper section 3.4), where the hardware multiplies it fast.
    let kind = plan.autocast.unwrap_or(Kind::Float);
    let language_model = LanguageModel::new(&config, &mut weights, kind, plan.device);
    finish(weights, path)?;
    Ok(language_model)
}

/// BLAKE3 of a file, in hexadecimal.
fn file_digest(path: &Path) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    fs::File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize().to_hex().to_string()))
        .map_err(|source| TrainError::Read { path: path.to_owned(), source })
}

fn finish(weights: Weights, path: PathBuf) -> Result<(), TrainError> {
    weights.finish().map_err(|error| TrainError::Weights { path, detail: error.to_string() })
}

/// Prompt, caption, end of text.
fn lm_captions(config: &Config) -> Result<LmCaptions, TrainError> {
    let language = &config.model.language;
    let specials: LmSpecials = read_json(&language.weights.join("config.json"))?;
    let path = language.weights.join("tokenizer.json");
    let tokenizer = LmTokenizer::bare(&path)?;
    Ok(LmCaptions {
        opening: tokenizer.encode_plain(&language.opening)?,
        prompt: tokenizer.encode_plain(&language.prompt)?,
        tokenizer,
        eos: specials.eos_token_id,
        max_tokens: language.max_new_tokens,
    })
}

/// The frozen encoder with a digest of all that its features depend on.
///
/// # Errors
/// [`TrainError::Read`], [`TrainError::Weights`] or [`TrainError::Data`].
pub(crate) fn encoder(plan: &Plan) -> Result<Encoder, TrainError> {
    let vision = &plan.config.model.vision;
    let path = vision.weights.join(WEIGHTS_FILE);
    let weights_digest = file_digest(&path)?;
    // Frozen: half precision where the hardware multiplies it fast; it is cached in 16 bits anyway.
    let kind = plan.autocast.unwrap_or(Kind::Float);
    // Ranks of one run must name one file: the kind of device counts, not its number.
    let made_by =
        format!("{weights_digest} {:?} cuda {} {kind:?}", vision.architecture, plan.device.is_cuda());
    let mut weights = Weights::new(tensors::read(&path)?);
    let encoder = VisionEncoder::new(&vision.architecture, &mut weights, kind, plan.device);
    finish(weights, path)?;
    Ok(Encoder {
        vision: encoder,
        digest: blake3::hash(made_by.as_bytes()).to_hex().to_string(),
        weights_digest,
        transform: Transform::new(plan.config.data.transform.clone())?,
    })
}

/// A stage with its weights: stage 1 from BERT, stage 2 from `stage1` where given, else from BERT too. Second: the names
/// that came from BERT, by way of stage 1 or not.
///
/// # Errors
/// [`TrainError::Weights`] when the weights do not fit.
pub(crate) fn stage(
    plan: &Plan,
    tools: &Tools,
    phase: Phase,
    stage1: Option<&BTreeMap<String, Tensor>>,
) -> Result<(Stage, BTreeSet<String>), TrainError> {
    tch::manual_seed(
        Rng::new(plan.config.run.seed, Stream::Init, &[random_name(phase)]).bits().cast_signed(),
    );
    let store = nn::VarStore::new(plan.device);
    let root = store.root();
    let config = qformer_config(&plan.config, &tools.sizes, phase, &tools.wordpiece, width(plan));
    let made = match phase {
        Phase::Stage1 => {
            let config = stage1_config(&plan.config, config);
            Stage::One(Stage1::new(&root, &config), store)
        }
        _ => {
            let language_model = Rc::clone(&tools.language_model);
            Stage::Two(Stage2::new(&root, &config, language_model, &tools.lm_captions.opening), store)
        }
    };
    let (Stage::One(_, store) | Stage::Two(_, store)) = &made;
    let pretrained = model::init_from_bert(store, &tools.bert).map_err(|error| TrainError::Weights {
        path: plan.config.model.qformer.init.join(WEIGHTS_FILE),
        detail: error.to_string(),
    })?;
    if let Some(weights) = stage1 {
        copy_weights(&shared_with_stage1(&made), weights, &plan.stage1.checkpoint_dir)?;
    }
    Ok((made, pretrained))
}

fn width(plan: &Plan) -> i64 {
    plan.config.model.vision.architecture.width()
}

fn qformer_config(
    config: &Config,
    sizes: &BertSizes,
    phase: Phase,
    wordpiece: &WordPiece,
    encoder_hidden_size: i64,
) -> QformerConfig {
    let qformer = &config.model.qformer;
    let text = (phase == Phase::Stage1).then(|| TextBranchConfig {
        vocab_size: wordpiece.vocab_size() as i64,
        max_position_embeddings: sizes.max_position_embeddings,
        decoder_start_id: wordpiece.special().bos,
    });
    QformerConfig {
        hidden_size: sizes.hidden_size,
        num_hidden_layers: sizes.num_hidden_layers,
        num_attention_heads: sizes.num_attention_heads,
        intermediate_size: sizes.intermediate_size,
        cross_attention_freq: qformer.cross_attention_freq,
        num_query_tokens: qformer.num_query_tokens,
        encoder_hidden_size,
        layer_norm_eps: sizes.layer_norm_eps,
        dropout: qformer.dropout,
        text,
    }
}

fn stage1_config(config: &Config, qformer: QformerConfig) -> Stage1Config {
    Stage1Config {
        qformer,
        projection_size: config.model.qformer.projection_size,
        negative_weighting: config.model.qformer.negative_weighting,
        itg_weighting: ItgWeighting::GlobalTokens,
    }
}

/// All of a stage 2 but its projection into the language model: what stage 1 must have trained.
fn shared_with_stage1(stage2: &Stage) -> BTreeMap<String, Tensor> {
    let mut shared = stage2.trainable();
    shared.retain(|name, _| !name.starts_with("language_projection."));
    shared
}

/// Copies `weights` into all of `trainable`; what else there is in `weights` is not needed.
///
/// # Errors
/// [`TrainError::Weights`] listing every parameter that is missing or misshapen.
pub(crate) fn copy_weights(
    trainable: &BTreeMap<String, Tensor>,
    weights: &BTreeMap<String, Tensor>,
    path: &Path,
) -> Result<(), TrainError> {
    let mut problems = Vec::new();
    for (name, parameter) in trainable {
        match weights.get(name) {
            None => problems.push(format!("{name} is missing")),
            Some(value) if value.size() != parameter.size() => {
                problems.push(format!("{name} is {:?}, wanted {:?}", value.size(), parameter.size()));
            }
            Some(value) => no_grad(|| parameter.shallow_clone().copy_(value)),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(TrainError::Weights { path: path.to_owned(), detail: problems.join("; ") })
}

/// Trainable parameters of each stage, and what a step reduces, without training anything.
///
/// # Errors
/// [`TrainError::Read`] or [`TrainError::Weights`] when the BERT folder is not there.
pub(crate) fn describe(plan: &Plan) -> Result<String, TrainError> {
    let qformer = &plan.config.model.qformer;
    let sizes: BertSizes = read_json(&qformer.init.join("config.json"))?;
    let wordpiece = WordPiece::from_vocab(&qformer.init.join("vocab.txt"))?;
    // The meta device has shapes and no memory; tch cannot name it, so a CPU store is made and dropped.
    let store = nn::VarStore::new(Device::Cpu);
    let config = qformer_config(&plan.config, &sizes, Phase::Stage1, &wordpiece, width(plan));
    let _stage1 = Stage1::new(&store.root(), &stage1_config(&plan.config, config));
    let parameters: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
    Ok(format!(
        "  stage1: {parameters} trainable parameters, {:.1} MB reduced per step",
        4e-6 * parameters as f64
    ))
}
