//! Snapshots of one phase on their way to disk. Rank 0 writes; the other ranks hold the same weights.

use std::path::Path;

use checkpoint::{CheckpointError, Loaded, Saved, Snapshot, Store, TensorMap, Writer};

use crate::error::TrainError;
use crate::optim::AdamW;
use crate::plan::StagePlan;
use crate::stage::Stage;
use crate::state::TrainState;
use crate::tensors::to_host;

/// Names of the averaged weights inside `optimizer.safetensors`.
const AVERAGE: &str = "average.";

/// Where a phase's snapshots go.
pub struct Checkpoints {
    writer: Option<Writer>,
    phase: String,
    config: String,
}

impl Checkpoints {
    /// Opens the phase's folder on rank 0; elsewhere saving does nothing.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when the folder cannot be made.
    pub fn open(plan: &StagePlan, is_rank0: bool, config: String) -> Result<Self, TrainError> {
        let writer = match is_rank0 {
            true => Some(Writer::new(Store::open(&plan.checkpoint_dir, plan.keep_checkpoints)?)),
            false => None,
        };
        Ok(Self { writer, phase: plan.phase.name().into(), config })
    }

    /// Saves in the background, unless the save before this one is still being written. Returns what went wrong: a
    /// full disk does not end training.
    pub fn submit(&mut self, state: &TrainState, stage: &Stage, optimizer: &AdamW) -> Option<String> {
        if !self.writer.as_ref()?.is_idle() {
            return Some(format!(
                "checkpoint of step {} left out: the one before it is still being written; a slower \
                 checkpoint_every_steps or a faster disk helps",
                state.step
            ));
        }
        let snapshot = self.snapshot(state, stage, optimizer);
        self.writer.as_mut()?.submit(snapshot, state.step).and_then(describe)
    }

    /// Saves before it returns, whatever is still being written; with `best` it is pinned too. For what must not be
    /// left out: a phase's last step, a step that is handed over, a requested stop.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when it is not on the disk.
    pub fn save(
        &mut self,
        state: &TrainState,
        stage: &Stage,
        optimizer: &AdamW,
        best: bool,
    ) -> Result<(), TrainError> {
        if self.writer.is_none() {
            return Ok(());
        }
        let snapshot = self.snapshot(state, stage, optimizer);
        let Some(writer) = self.writer.as_mut() else { return Ok(()) };
        // Its own outcome comes last; one before it that failed has been made up for.
        if let Some(outcome) = writer.save_now(&snapshot, state.step).pop() {
            outcome?;
        }
        if best {
            writer.store().pin(state.step)?;
        }
        Ok(())
    }

    fn snapshot(&self, state: &TrainState, stage: &Stage, optimizer: &AdamW) -> Snapshot {
        Snapshot {
            model: stage.trainable().iter().map(|(name, p)| (name.clone(), to_host(p))).collect(),
            optimizer: optimizer.snapshot(),
            state: serde_json::to_value(state).unwrap_or_default(),
            config: self.config.clone(),
            phase: self.phase.clone(),
            parent: None,
            frozen: Default::default(),
        }
    }
}

/// What a person should know of a save that failed.
pub fn not_written(error: &dyn std::error::Error) -> String {
    format!("checkpoint not written: {}; training goes on", launch::with_causes(error))
}

fn describe(outcome: Result<Saved, CheckpointError>) -> Option<String> {
    outcome.err().map(|error| not_written(&error))
}

/// The newest whole checkpoint of a phase with its state; warnings name what had to be passed over.
///
/// # Errors
/// [`TrainError::Checkpoint`] when there are checkpoints and none is whole.
pub fn latest(plan: &StagePlan) -> Result<Option<(Loaded, TrainState)>, TrainError> {
    let Some(loaded) = checkpoint::latest_valid(&plan.checkpoint_dir)? else { return Ok(None) };
    let state = state_of(&loaded.snapshot, &loaded.path)?;
    Ok(Some((loaded, state)))
}

/// What a phase hands over: the averaged weights of its best validated step, else of its last one.
///
/// # Errors
/// [`TrainError::Checkpoint`] when it cannot be read, [`TrainError::Weights`] when there is none.
pub fn handed_over(plan: &StagePlan) -> Result<(TensorMap, TrainState), TrainError> {
    let folder = match checkpoint::pinned(&plan.checkpoint_dir)? {
        Some(best) => best.path,
        None => match checkpoint::list(&plan.checkpoint_dir)?.pop() {
            Some(last) => last.path,
            None => {
                return Err(TrainError::Weights {
                    path: plan.checkpoint_dir.clone(),
                    detail: "holds no checkpoint".into(),
                });
            }
        },
    };
    let (_, snapshot) = checkpoint::load(&folder)?;
    let state = state_of(&snapshot, &folder)?;
    let mut weights = snapshot.model;
    for (name, average) in snapshot.optimizer {
        if let Some(parameter) = name.strip_prefix(AVERAGE) {
            weights.insert(parameter.to_owned(), average);
        }
    }
    Ok((weights, state))
}

fn state_of(snapshot: &Snapshot, path: &Path) -> Result<TrainState, TrainError> {
    serde_json::from_value(snapshot.state.clone()).map_err(|error| TrainError::Weights {
        path: path.to_owned(),
        detail: format!("state.json is of another version of blip2: {error}"),
    })
}
