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

    /// Saves in the background; with `best` at once, and pinned. Returns what went wrong: a full disk does not end
    /// training.
    pub fn save(
        &mut self,
        state: &TrainState,
        stage: &Stage,
        optimizer: &AdamW,
        best: bool,
    ) -> Option<String> {
        let writer = self.writer.as_mut()?;
        if !best && !writer.is_idle() {
            return Some(format!(
                "checkpoint of step {} left out: the one before it is still being written; a slower \
                 checkpoint_every_steps or a faster disk helps",
                state.step
            ));
        }
        let snapshot = Snapshot {
            model: stage.trainable().iter().map(|(name, p)| (name.clone(), to_host(p))).collect(),
            optimizer: optimizer.snapshot(),
            state: serde_json::to_value(state).unwrap_or_default(),
            config: self.config.clone(),
            phase: self.phase.clone(),
            parent: None,
            frozen: Default::default(),
        };
        if !best {
            return describe(writer.submit(snapshot, state.step).into_iter());
        }
        let saved = describe(writer.save_now(&snapshot, state.step).into_iter());
        let pinned = writer.store().pin(state.step).err().map(|error| error.to_string());
        saved.or(pinned)
    }

    /// Waits for the save in flight.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`]: at the end of a phase its last checkpoint must be on the disk.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        match self.writer.as_mut().and_then(Writer::finish) {
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn describe(outcomes: impl Iterator<Item = Result<Saved, CheckpointError>>) -> Option<String> {
    let failed: Vec<String> = outcomes
        .filter_map(Result::err)
        .map(|error| format!("checkpoint not written: {error}; training goes on"))
        .collect();
    (!failed.is_empty()).then(|| failed.join("; "))
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
