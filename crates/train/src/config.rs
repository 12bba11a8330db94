//! What the user wrote: one TOML file is one whole run.
//!
//! `Config` mirrors the file and is only parsed; every derived number is made once, in [`crate::plan::Plan`].
//! Unknown keys are refused with their line and a "did you mean".

mod file;
mod generation;
mod rules;
mod stage;

use std::path::PathBuf;

use collectives::GradientDtype;
pub use generation::GenerationConfig;
use serde::{Deserialize, Serialize};
pub use stage::{ContrastiveAccumulation, HandOver, OptimConfig, StageConfig};

/// The whole run: data, models, both stages, evaluation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name, folder, seed, device.
    pub run: RunConfig,
    /// Where the pairs come from and how they are turned into examples.
    pub data: DataConfig,
    /// Vision encoder, Q-Former, language model.
    pub model: ModelConfig,
    /// Representation learning (paper section 3.2).
    pub stage1: StageConfig,
    /// Generative learning (paper section 3.3).
    pub stage2: StageConfig,
    /// Held-out splits and what is measured on them.
    pub evaluation: EvaluationConfig,
    /// How ranks share the work.
    #[serde(default)]
    pub distributed: DistributedConfig,
}

/// How ranks share the work.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedConfig {
    /// Gradients travel in messages of about so many MiB (PyTorch's DDP: 25).
    pub bucket_mib: f64,
    /// As what they travel: `fp32`, or `bf16` for half the bytes.
    pub gradient_dtype: GradientDtype,
    /// Whether each rank holds all frozen weights.
    pub sharding: Sharding,
    /// What becomes of the other ranks where one dies.
    pub recovery: Recovery,
}

/// What becomes of the other ranks where one dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recovery {
    /// They end; all are started again and go on from the newest checkpoint.
    #[default]
    Restart,
    /// They stay and keep what they hold; a new process takes the dead one's place and gets it from them.
    Regroup,
}

/// What ranks hold in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// Nothing.
    #[default]
    None,
    /// The layers of the frozen language model: for one that does not fit a device.
    Frozen,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        Self {
            bucket_mib: 25.0,
            gradient_dtype: GradientDtype::Fp32,
            sharding: Sharding::None,
            recovery: Recovery::Restart,
        }
    }
}

/// Name, folder, seed, device.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Shown in dashboards and in the report.
    pub name: String,
    /// Run folder: metrics, checkpoints, report. Relative paths are relative to the working directory.
    pub dir: PathBuf,
    /// Every random number of the run is a pure function of this and of a step or sample.
    pub seed: u64,
    /// `auto` takes CUDA where libtorch sees a GPU, else the CPU.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Forward passes of the trainable part: `auto` is bf16 on CUDA and on CPUs with AVX512-BF16 or AMX, else fp32.
    #[serde(default)]
    pub compute_dtype: ComputeDtype,
    /// Sentences for the report, e.g. what a short run gives up.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where there is one.
    #[default]
    Auto,
    /// Always the CPU.
    Cpu,
    /// CUDA, or the run does not start.
    Cuda,
}

/// The dtype of matrix products in a part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// bf16 where the hardware multiplies it fast, else fp32.
    #[default]
    Auto,
    /// IEEE single.
    Fp32,
    /// bfloat16.
    Bf16,
    /// IEEE half; in the trainable part with dynamic loss scaling.
    Fp16,
}

/// Where the pairs come from and how they are turned into examples.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Shards of the training split, as one set: files, folders, brace patterns or URLs.
    #[serde(default)]
    pub train: Vec<String>,
    /// Several sets in place of `train`, their order, and where copies of remote shards go: for pictures that stream.
    #[serde(default)]
    pub source: data::source::SourceConfig,
    /// Of a list of captions only the first so many are drawn from; none: all of them (pictures that stream).
    #[serde(default)]
    pub first_captions: Option<usize>,
    /// The run ends (exit 93) when more than this share of the samples cannot be used.
    #[serde(default = "default_skipped_ratio")]
    pub max_skipped_ratio: f64,
    /// Decoding threads of each rank.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// Text length in tokens, `[CLS]` and `[SEP]` counted.
    pub max_text_tokens: usize,
    /// What a training text is made of.
    #[serde(default)]
    pub texts: data::TextPolicy,
    /// Stage 1: pairs with one caption are one concept, and so no negatives of each other (spec 3.1).
    #[serde(default)]
    pub group_by_caption: bool,
    /// Stage 1: the same for pairs whose samples have one `image_id` (LAVIS); a sample without one is its own.
    #[serde(default)]
    pub group_by_image_id: bool,
    /// Decode, crop, augment, normalise.
    pub transform: data::TransformConfig,
    /// The frozen encoder's features, computed once and kept on disk. Without this table training pictures are decoded and
    /// encoded in every step, for sets whose features do not fit; those of the evaluation are kept in the run folder.
    #[serde(default)]
    pub features: Option<FeatureConfig>,
    /// A text file with licences and attributions, quoted in the report.
    #[serde(default)]
    pub licences: Option<PathBuf>,
}

/// The frozen-feature cache. The encoder is frozen, so a picture's features never change during a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureConfig {
    /// Folder of the cache; its files are named by a digest of all that they depend on.
    pub dir: PathBuf,
    /// Augmented views cached for each training picture, beside the plain one.
    pub views: usize,
    /// Pictures in one forward pass of the encoder.
    #[serde(default = "default_encode_batch")]
    pub batch: usize,
}

/// The three models. Frozen ones name their weights.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The frozen image encoder.
    pub vision: VisionConfig,
    /// The trainable bridge.
    pub qformer: QformerConfig,
    /// The frozen language model.
    pub language: LanguageConfig,
}

/// The frozen image encoder.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Folder with `model.safetensors`, whole or in shards.
    pub weights: PathBuf,
    /// Which architecture, with its sizes.
    pub architecture: model::VisionConfig,
    /// Of its weights and matrix products; `auto` is what the trainable part computes in.
    #[serde(default)]
    pub dtype: ComputeDtype,
}

/// The trainable bridge: a BERT with queries and cross-attention.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QformerConfig {
    /// Folder with a BERT's `model.safetensors` and `vocab.txt`: start of the self-attention and of both feed-forwards.
    pub init: PathBuf,
    /// Sizes of that BERT: with them a run can be planned where the folder is not. They must agree with it where it is.
    #[serde(default)]
    pub bert: Option<BertSizes>,
    /// Learned queries (paper: 32).
    pub num_query_tokens: i64,
    /// Cross-attention in every n-th layer (paper: 2).
    #[serde(default = "default_cross_attention_freq")]
    pub cross_attention_freq: i64,
    /// Width of the shared ITC space (paper: 256).
    pub projection_size: i64,
    /// Dropout of hidden states and attention probabilities (paper: 0.1).
    pub dropout: f64,
    /// Layers keep their inputs alone and are computed again in the backward pass: more time, less memory.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// How hard negatives of ITM are drawn: `masked_softmax` or `softmax_plus_eps` (LAVIS 1.0.2).
    #[serde(default)]
    pub negative_weighting: model::NegativeWeighting,
}

/// Sizes of a BERT, by the names of its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BertSizes {
    /// Width D.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads.
    pub num_attention_heads: i64,
    /// Inner width of the feed-forwards.
    pub intermediate_size: i64,
    /// Longest text.
    pub max_position_embeddings: i64,
    /// Word pieces, without the `[DEC]` that we add.
    pub vocab_size: i64,
    /// BERT: 1e-12.
    pub layer_norm_eps: f64,
}

impl BertSizes {
    /// The fields' names.
    pub(crate) const KEYS: [&str; 7] = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
        "layer_norm_eps",
    ];
}

/// The frozen language model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// A Hugging Face folder: `model.safetensors`, `config.json`, `tokenizer.json`.
    pub weights: PathBuf,
    /// Width of its embeddings: with it a run can be planned where the folder is not.
    #[serde(default)]
    pub hidden_size: Option<i64>,
    /// Of its weights and matrix products; `auto` is what the trainable part computes in.
    #[serde(default)]
    pub dtype: ComputeDtype,
    /// Read before the image: for a chat model, the start of the user's turn.
    #[serde(default)]
    pub opening: String,
    /// Read between image and caption, and not scored.
    #[serde(default)]
    pub prompt: String,
    /// An encoder-decoder's captions are split between words (the default) or between tokens: the encoder reads the first
    /// part, the decoder says the second. Decoder-only models say the whole.
    #[serde(default)]
    pub prefix_split: Option<data::PrefixSplit>,
    /// Layers keep their inputs alone and are computed again in the backward pass: more time, less memory.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Longest caption that is generated, in tokens.
    #[serde(default = "default_new_tokens")]
    pub max_new_tokens: usize,
}

/// Held-out splits and what is measured on them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// The splits; the ones with `select = true` choose the stage-1 checkpoint.
    pub splits: Vec<SplitConfig>,
    /// Candidates of each query that ITM scores again (LAVIS: 128).
    pub rerank_candidates: usize,
    /// Weight w of the similarity in a re-ranked pair's score, ITM logit + w x cosine. LAVIS's is 1.
    #[serde(default = "default_one")]
    pub rerank_itc_weight: f64,
    /// Captions are generated for at most this many pictures of a split, chosen by the seed.
    pub max_captions: usize,
    /// How they are searched for.
    #[serde(default)]
    pub generation: GenerationConfig,
    /// Train a second stage 2 from a fresh Q-Former for comparison (paper fig. 5).
    pub without_stage1: bool,
    /// Pictures shown in the report.
    #[serde(default = "default_gallery")]
    pub gallery: usize,
    /// Figures of other systems on the same items, printed beside ours.
    #[serde(default)]
    pub references: Vec<ReferenceConfig>,
}

/// One held-out split.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// Its key in `eval.json`.
    pub name: String,
    /// What is unseen in it, as a phrase for the report.
    #[serde(default)]
    pub description: String,
    /// Shards.
    pub shards: Vec<String>,
    /// Only samples whose key starts so.
    #[serde(default)]
    pub key_prefix: Option<String>,
    /// Used to choose the stage-1 checkpoint, never reported as held-out.
    #[serde(default)]
    pub select: bool,
    /// Left out of `eval.json` and of the report (a split that only selects).
    #[serde(default)]
    pub hidden: bool,
}

/// Figures of another system on the same items.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceConfig {
    /// Which system, and how it was run.
    pub system: String,
    /// Split name.
    pub split: String,
    /// Image to text recall at 1, 5, 10 (0 to 1).
    pub i2t: [f64; 3],
    /// Text to image recall at 1, 5, 10 (0 to 1).
    #[serde(default)]
    pub t2i: Option<[f64; 3]>,
}

fn default_skipped_ratio() -> f64 {
    0.01
}
fn default_workers() -> usize {
    1
}
pub(crate) fn default_encode_batch() -> usize {
    16
}
fn default_cross_attention_freq() -> i64 {
    2
}
fn default_new_tokens() -> usize {
    16
}
fn default_one() -> f64 {
    1.0
}
fn default_gallery() -> usize {
    24
}
