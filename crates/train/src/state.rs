//! Everything a resumed run needs beside weights and optimizer moments. Not here means not resumed.

use data::Counters;
use serde::{Deserialize, Serialize};

use crate::leaps::Leaps;
use crate::loss_scale::LossScale;
use crate::status::Status;

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
    /// Steps in a row that were left out, see [`Skipped`].
    #[serde(default)]
    pub skipped_in_a_row: u64,
    /// All steps left out.
    pub steps_skipped: u64,
    /// Returns to a checkpoint because too many steps in a row were left out.
    #[serde(default)]
    pub roll_backs: u64,
    /// What losses and gradients were like lately.
    #[serde(default)]
    pub leaps: Leaps,
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

/// Why the gradient of a step is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// Some rank's loss or gradient is not finite.
    NotFinite,
    /// The loss or the gradient leaps above what it was lately.
    Leap,
}

impl TrainState {
    /// Whether a step is to be left out, and why; from what all ranks agree on, so that all come to the same.
    pub fn judge(&mut self, status: &Status) -> Option<Skipped> {
        let loss = status.losses.get("loss").copied().unwrap_or(f64::NAN);
        match status.finite {
            false => Some(Skipped::NotFinite),
            true => self.leaps.seen(loss, status.grad_norm).then_some(Skipped::Leap),
        }
    }
}

/// A validated step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer steps behind it.
    pub step: u64,
    /// Its score; higher is better.
    pub score: f64,
}
