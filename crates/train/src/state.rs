//! Everything a resumed run needs beside weights and optimizer moments. Not here means not resumed.

use data::Counters;
use serde::{Deserialize, Serialize};

use crate::loss_scale::LossScale;

/// Progress of one phase. Random numbers need no state: each is a pure function of the seed and of a position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Image-text pairs seen by all ranks; also the position in the sample order.
    pub pairs_seen: u64,
    /// Seconds spent in steps, over all launches.
    pub train_seconds: f64,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Steps in a row whose loss or gradient was not finite.
    pub not_finite_in_a_row: u64,
    /// Steps left out because of that.
    pub steps_skipped: u64,
    /// A stop came before this step was validated.
    #[serde(default)]
    pub validation_due: bool,
    /// What fp16's losses are multiplied by.
    #[serde(default)]
    pub loss_scale: LossScale,
    /// Samples of a stream left out, over all ranks and launches.
    #[serde(default)]
    pub left_out: Counters,
}

/// A validated step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer steps behind it.
    pub step: u64,
    /// Its score; higher is better.
    pub score: f64,
}
