//! Steps whose gradient was not taken, with the samples that they had: who looks for the cause begins there.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use monitor::Phase;
use serde::Serialize;

use crate::state::{Skipped, TrainState};
use crate::status::Status;

/// One JSON object a step, in the run folder.
const FILE: &str = "skipped_steps.jsonl";

/// One line of the file.
#[derive(Debug, Serialize)]
pub struct SkippedStep {
    phase: Phase,
    /// Steps done before it.
    after_step: u64,
    /// Position of its first pair in the run.
    first_position: u64,
    why: Skipped,
    /// `null` where it is not finite.
    loss: Option<f64>,
    grad_norm: Option<f64>,
    /// `SHARD: KEY` of every pair, all ranks together.
    samples: Vec<String>,
}

impl SkippedStep {
    /// The step that `state` stands before, with the `samples` of all ranks.
    pub fn new(
        phase: Phase,
        state: &TrainState,
        why: Skipped,
        status: &Status,
        samples: Vec<String>,
    ) -> Self {
        let finite = |value: f64| value.is_finite().then_some(value);
        Self {
            phase,
            after_step: state.step,
            first_position: state.pairs_seen,
            why,
            loss: status.losses.get("loss").copied().and_then(finite),
            grad_norm: finite(status.grad_norm),
            samples,
        }
    }

    /// Adds the line to the file of `run_dir`. Returns what a person should know.
    pub fn write(&self, run_dir: &Path) -> String {
        let path = run_dir.join(FILE);
        let why = match self.why {
            Skipped::Leap => "loss or gradient leaps",
            Skipped::NotFinite => "loss or gradient is not finite",
        };
        let step = self.after_step + 1;
        match self.append(&path) {
            Ok(()) => {
                format!("step {step} left out on all ranks: {why}; its samples are in {}", path.display())
            }
            Err(error) => format!(
                "step {step} left out on all ranks: {why}; {} cannot be written: {error}",
                path.display()
            ),
        }
    }

    fn append(&self, path: &Path) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).open(path)?.write_all(&line)
    }
}
