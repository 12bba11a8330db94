//! How a stage is trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::default_one;

/// One stage of training.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Optimizer steps; with `from` there may be none: its weights are then handed over as they are.
    pub steps: u64,
    /// Weights that the stage starts from: a checkpoint, or the folder that `blip2 import` made of a BLIP-2. Without, stage 1
    /// starts from BERT and stage 2 from stage 1.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// Pairs of all ranks in one optimizer step.
    pub global_batch: usize,
    /// Pairs of one rank in one forward; default: `global_batch / world_size`.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Stage 1: what becomes of ITC where `micro_batch` asks for several forward passes a step.
    #[serde(default)]
    pub contrastive_accumulation: ContrastiveAccumulation,
    /// AdamW and its schedule.
    pub optim: OptimConfig,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept, beside the best one.
    #[serde(default = "default_keep")]
    pub keep_checkpoints: usize,
    /// Steps between validations (0 = never).
    #[serde(default)]
    pub validate_every_steps: u64,
    /// Stage 1: which step stage 2 and the evaluation get.
    #[serde(default)]
    pub hand_over: HandOver,
}

/// Which step of a stage goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HandOver {
    /// The one that validates best; the last one where none is validated.
    #[default]
    Best,
    /// The last one, as BLIP-2 did: for validation splits so small that their noise would choose.
    Last,
}

/// Accumulation takes negatives away from ITC, or costs a second forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContrastiveAccumulation {
    /// Not accepted: a step of stage 1 is one forward pass.
    #[default]
    None,
    /// Embeddings of the whole step first, gradients second (GradCache, arXiv 2101.06983): the numbers of one large batch.
    Cached,
}

/// AdamW (betas 0.9, 0.98 in the paper) with a linear warm-up and a cosine per step.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate after the warm-up.
    pub peak_lr: f64,
    /// Where the cosine ends.
    pub min_lr: f64,
    /// Length of the linear warm-up from 0, in steps.
    pub warmup_steps: u64,
    /// Decoupled decay of matrices (LayerNorm gains, biases and the temperature are not decayed).
    pub weight_decay: f64,
    /// AdamW's betas.
    #[serde(default = "default_betas")]
    pub betas: (f64, f64),
    /// Gradient norm above which the gradient is scaled down.
    #[serde(default)]
    pub max_grad_norm: Option<f64>,
    /// Learning-rate factor of what came from the pretrained BERT and reads text: all but the feed-forwards of queries.
    #[serde(default = "default_one")]
    pub pretrained_lr_ratio: f64,
    /// Stage 1: a further factor for the word embeddings. ITG's softmax pushes the words that training never shows, all one way,
    /// and Adam makes full steps of the smallest push: 0 leaves every word where BERT had it.
    #[serde(default = "default_one")]
    pub word_embedding_lr_ratio: f64,
    /// Evaluate and hand over an exponential moving average of the weights.
    #[serde(default)]
    pub ema_decay: Option<f64>,
}

fn default_keep() -> usize {
    2
}
fn default_betas() -> (f64, f64) {
    (0.9, 0.98)
}
