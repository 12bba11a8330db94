//! From the plan to models: reads weight folders, makes stages, says what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use collectives::ProcessGroup;
use data::{LmTokenizer, Rng, Stream, Transform, WordPiece};
use model::{LanguageConfig, LanguageModel, Stage1, Stage2, VisionEncoder, Weights};
use monitor::Phase;
use tch::{Tensor, nn, no_grad};

use crate::checkpoints::HandedOver;
use crate::config::{BertSizes, Config, Sharding};
use crate::error::TrainError;
use crate::features::Encoder;
use crate::plan::Plan;
use crate::sizes::{self, LanguageFile, Vocabulary};
use crate::stage::{Stage, random_name};
use crate::tensors::{WeightFolder, all_to_torch};
use crate::texts::{self, LmCaptions, LmPrompt};

const VOCABULARY_FILE: &str = "vocab.txt";

/// What both stages are built from.
pub(crate) struct Tools {
    /// The Q-Former's tokenizer.
    pub wordpiece: WordPiece,
    /// How the language model reads captions.
    pub lm_captions: LmCaptions,
    /// Digest of the language model's weights.
    pub language_digest: String,
    /// Digest of its tokenizer.
    pub tokens_digest: String,
    /// Digest of the Q-Former's vocabulary.
    pub words_digest: String,
    language_model: Rc<LanguageModel>,
    bert: BTreeMap<String, Tensor>,
    sizes: BertSizes,
}

/// Reads tokenizers, the frozen language model and the weights that the Q-Former starts from.
///
/// # Errors
/// [`TrainError::Read`], [`TrainError::Weights`] or [`TrainError::Data`] naming the file; [`TrainError::Peer`] where ranks
/// that hold the language model together do not meet.
pub(crate) fn tools(plan: &Plan, group: &dyn ProcessGroup) -> Result<Tools, TrainError> {
    let model = &plan.config.model;
    let language = sizes::language(&plan.config)?;
    let wordpiece = WordPiece::from_vocab(&model.qformer.init.join(VOCABULARY_FILE))?;
    let lm_captions = lm_captions(&plan.config, &language)?;
    // What is wrong with one folder is told before the gigabytes of another are read; the encoder is built later.
    WeightFolder::open(&model.vision.weights)?;
    let bert = WeightFolder::open(&model.qformer.init)?;
    let language_weights = WeightFolder::open(&model.language.weights)?;
    let language_model = language_model(plan, &language.sizes, &language_weights, group)?;
    Ok(Tools {
        wordpiece,
        lm_captions,
        language_digest: language_weights.digest()?,
        tokens_digest: files_digest(&LmTokenizer::files(&model.language.weights))?,
        words_digest: files_digest(&[model.qformer.init.join(VOCABULARY_FILE)])?,
        language_model: Rc::new(language_model),
        bert: bert.read_all()?,
        sizes: sizes::bert(&plan.config)?,
    })
}

/// Whole, or this rank's part of it. Weights are read tensor by tensor: they may be more than what a rank has room for.
fn language_model(
    plan: &Plan,
    config: &LanguageConfig,
    folder: &WeightFolder,
    group: &dyn ProcessGroup,
) -> Result<LanguageModel, TrainError> {
    let mut weights = folder.weights();
    let language_model = match plan.config.distributed.sharding {
        Sharding::None => LanguageModel::new(config, &mut weights, plan.language_kind, plan.device),
        Sharding::Frozen => {
            LanguageModel::parted(config, &mut weights, plan.language_kind, group.beside("language")?)
        }
    };
    finish(weights, &plan.config.model.language.weights)?;
    Ok(language_model.with_gradient_checkpointing(plan.config.model.language.gradient_checkpointing))
}

/// BLAKE3 of what files hold, one behind the other, in hexadecimal.
fn files_digest(paths: &[PathBuf]) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        fs::File::open(path)
            .and_then(|file| hasher.update_reader(file).map(|_| ()))
            .map_err(|source| TrainError::Read { path: path.clone(), source })?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn finish(weights: Weights, folder: &Path) -> Result<(), TrainError> {
    weights
        .finish()
        .map_err(|error| TrainError::Weights { path: folder.to_owned(), detail: error.to_string() })
}

/// Opening, prompt, caption, end of text, and which part of it an encoder reads.
fn lm_captions(config: &Config, model: &LanguageFile) -> Result<LmCaptions, TrainError> {
    let language = &config.model.language;
    let tokenizer = LmTokenizer::from_folder(&language.weights)?;
    let opening = tokenizer.encode_plain(&language.opening)?;
    // OPT's tokenizer opens each text by </s>, and LAVIS ends captions by a newline.
    let start = model.bos_token_id.filter(|_| model.sizes.is_opt());
    let newline = if model.sizes.is_opt() { texts::newline(&tokenizer)? } else { None };
    Ok(LmCaptions {
        opening,
        prompt: LmPrompt::new(&language.prompt, &tokenizer, start)?,
        tokenizer,
        eos: newline.unwrap_or(model.eos_token_id),
        max_tokens: config.data.max_text_tokens,
        max_new_tokens: language.max_new_tokens,
        split: model.sizes.is_encoder_decoder().then(|| language.prefix_split.unwrap_or_default()),
    })
}

/// The frozen encoder with a digest of all that its features depend on.
///
/// # Errors
/// [`TrainError::Read`], [`TrainError::Weights`] or [`TrainError::Data`].
pub(crate) fn encoder(plan: &Plan) -> Result<Encoder, TrainError> {
    let vision = &plan.config.model.vision;
    let folder = WeightFolder::open(&vision.weights)?;
    let mut weights = folder.weights();
    let kind = plan.vision_kind;
    let encoder = VisionEncoder::new(&vision.architecture, &mut weights, kind, plan.device);
    finish(weights, &vision.weights)?;
    let weights_digest = folder.digest()?;
    // Ranks of one run must name one file: the kind of device counts, not its number.
    let made_by =
        format!("{weights_digest} {:?} cuda {} {kind:?}", vision.architecture, plan.device.is_cuda());
    Ok(Encoder {
        vision: encoder,
        digest: blake3::hash(made_by.as_bytes()).to_hex().to_string(),
        weights_digest,
        transform: Arc::new(Transform::new(plan.config.data.transform.clone())?),
    })
}

/// A stage with its weights: those of `start` where given, else BERT's. Second: the names that came from BERT and read text,
/// by way of a stage before this one or not.
///
/// # Errors
/// [`TrainError::Weights`] when the weights do not fit.
pub(crate) fn stage(
    plan: &Plan,
    tools: &Tools,
    phase: Phase,
    start: Option<&HandedOver>,
) -> Result<(Stage, BTreeSet<String>), TrainError> {
    tch::manual_seed(
        Rng::new(plan.config.run.seed, Stream::Init, &[random_name(phase)]).bits().cast_signed(),
    );
    let store = nn::VarStore::new(plan.device);
    let root = store.root();
    let vocabulary = Vocabulary::from(&tools.wordpiece);
    let made = match phase {
        Phase::Stage1 => {
            let config = sizes::stage1(&plan.config, &tools.sizes, vocabulary);
            Stage::One(Stage1::new(&root, &config), store)
        }
        _ => {
            let config = sizes::qformer(&plan.config, &tools.sizes, vocabulary, phase);
            let language_model = Rc::clone(&tools.language_model);
            Stage::Two(Stage2::new(&root, &config, language_model, &tools.lm_captions.opening), store)
        }
    };
    let (Stage::One(_, store) | Stage::Two(_, store)) = &made;
    let mut pretrained = model::init_from_bert(store, &tools.bert).map_err(|error| TrainError::Weights {
        path: plan.config.model.qformer.init.clone(),
        detail: error.to_string(),
    })?;
    // Copies of text's feed-forward: they are to learn pictures, which BERT knew nothing of.
    pretrained.retain(|name| !name.contains("_query."));
    if let Some(start) = start {
        let weights = all_to_torch(&start.weights);
        let mut taken = made.trainable();
        taken.retain(|name, _| weights.contains_key(name) || !may_start_fresh(name));
        copy_weights(&taken, &weights, &start.path)?;
    }
    Ok((made, pretrained))
}

/// What weights may lack that a stage starts from: stage 1 has no projection into the language model, a stage 1 of Hugging
/// Face's neither temperature nor LM head.
fn may_start_fresh(name: &str) -> bool {
    ["language_projection.", "temperature", "cls.predictions."].iter().any(|start| name.starts_with(start))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::*;

    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": [],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false },
        "model": { "type": "WordLevel", "vocab": {"?": 0, "a": 1, "</s>": 2, "b": 3, "\n": 4}, "unk_token": "?" }
    }"#;

    /// How a model of `family` reads captions behind `prompt`.
    fn framing(family: &str, prompt: &str) -> LmCaptions {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), TOKENIZER).unwrap();
        let sizes = serde_json::json!({
            "model_type": family, "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "ffn_dim": 16, "intermediate_size": 16, "max_position_embeddings": 16, "rms_norm_eps": 1e-6,
            "bos_token_id": 2, "eos_token_id": 2,
        });
        fs::write(dir.path().join("config.json"), sizes.to_string()).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/paper_vit_g_opt_2.7b.toml");
        let sets = [
            format!("model.language.weights={}", dir.path().display()),
            format!("model.language.prompt=\"{prompt}\""),
            "model.language.hidden_size=8".to_owned(),
        ];
        let config = Config::read(&path, &sets).unwrap();
        lm_captions(&config, &sizes::language(&config).unwrap()).unwrap()
    }

    #[test]
    fn opt_reads_captions_as_lavis_frames_them() {
        let bare = framing("opt", "");
        let of =
            |captions: &LmCaptions| (captions.prompt.ids.clone(), captions.prompt.unscored, captions.eos);
        assert_eq!(of(&bare), (vec![2], 0, 4));
        let asked = framing("opt", "ab");
        assert_eq!(of(&asked), (vec![2, 1, 3], 3, 4));
        let llama = framing("llama", "ab");
        assert_eq!(of(&llama), (vec![1, 3], 2, 2));
    }
}
