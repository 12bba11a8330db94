//! Back to the newest checkpoint, and on with other samples, where too many steps in a row had to be left out.

use crate::agree;
use crate::build;
use crate::checkpoints;
use crate::error::TrainError;
use crate::state::TrainState;
use crate::tensors::all_to_torch;
use crate::trainer::Trainer;

/// After so many returns the phase gives up: the numbers do not get better by themselves.
const MAX_ROLL_BACKS: u64 = 3;

impl Trainer<'_> {
    /// Weights, moments and step of the newest checkpoint; the samples that were seen since are not seen again. All
    /// ranks do it together.
    ///
    /// # Errors
    /// [`TrainError::Lost`] where there is no checkpoint, or after too many returns; a lost peer.
    pub fn roll_back(&mut self) -> Result<(), TrainError> {
        let lost = TrainError::Lost {
            phase: self.plan.phase.name().into(),
            step: self.state.step,
            steps: self.state.skipped_in_a_row,
            roll_backs: self.state.roll_backs,
        };
        if self.state.roll_backs == MAX_ROLL_BACKS {
            return Err(lost);
        }
        // What rank 0 is still writing is there for all of them to read.
        let failed = self.checkpoints.finish();
        self.session.group.barrier()?;
        if let Some(warning) = failed {
            self.session.metrics.warn(warning);
        }
        let found = checkpoints::latest(self.plan)?;
        let step = found.as_ref().map_or(0, |(_, then)| then.step);
        agree::on_step(self.session.group.as_ref(), step, &self.plan.checkpoint_dir)?;
        let Some((loaded, then)) = found else { return Err(lost) };
        build::copy_weights(&self.stage.trainable(), &all_to_torch(&loaded.snapshot.model), &loaded.path)?;
        self.optimizer.restore(&loaded.snapshot.optimizer)?;
        let now = &*self.state;
        let back = TrainState {
            pairs_seen: now.pairs_seen,
            train_seconds: now.train_seconds,
            steps_skipped: now.steps_skipped,
            roll_backs: now.roll_backs + 1,
            left_out: now.left_out.clone(),
            skipped_in_a_row: 0,
            ..then
        };
        (*self.state, *self.owed) = (back, false);
        self.told.clear();
        self.session.metrics.warn(format!(
            "{lost}: back to step {} with the samples that follow; {} of {MAX_ROLL_BACKS} returns",
            self.state.step, self.state.roll_backs
        ));
        // No rank reads any more when rank 0 tidies the folder.
        Ok(self.session.group.barrier()?)
    }
}
