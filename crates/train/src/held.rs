//! A phase as it stands in a rank's memory: what it trains with, and what a process that takes a dead rank's place gets.

use collectives::{CommError, ProcessGroup};
use monitor::{Phase, StepRecord};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use checkpoint::Loaded;

use crate::agree::broadcast_bytes;
use crate::build::{self, Tools};
use crate::checkpoints::{self, HandedOver};
use crate::error::TrainError;
use crate::optim::AdamW;
use crate::plan::{Plan, StagePlan};
use crate::stage::Stage;
use crate::state::TrainState;
use crate::tensors::all_to_torch;

/// All that a rank needs to go on with a phase.
pub(crate) struct Held {
    pub phase: Phase,
    pub stage: Stage,
    pub optimizer: AdamW,
    pub rest: Rest,
}

/// What is no tensor.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Rest {
    pub state: TrainState,
    /// The step is taken, but what follows it (a validation, a checkpoint) is not done.
    pub owed: bool,
    /// The records of the newest step: rank 0 may be gone before it wrote them.
    pub told: Vec<StepRecord>,
}

/// How far the memory of a rank has come: phase, step, and whether nothing of it is owed. Ranks that have lost another
/// differ by one step at most.
type Place = [i64; 3];

const NOWHERE: Place = [-1; 3];

/// The furthest that any rank has come in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Furthest {
    place: Place,
    /// The lowest rank that holds it.
    pub rank: usize,
}

impl Furthest {
    /// What the ranks hold, of which this one holds `own`; `None` where none holds anything.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub(crate) fn of(group: &dyn ProcessGroup, own: Option<&Held>) -> Result<Option<Self>, CommError> {
        let own = own.map_or(NOWHERE, Held::place);
        let all = group.all_gather(&Tensor::from_slice(&own).to_device(group.device()))?;
        let all = Vec::<i64>::try_from(all.to_device(Device::Cpu)).unwrap_or_default();
        Ok(Self::among(all.as_chunks().0))
    }

    fn among(places: &[Place]) -> Option<Self> {
        let furthest = *places.iter().max().filter(|place| **place != NOWHERE)?;
        let rank = places.iter().position(|place| *place == furthest)?;
        Some(Self { place: furthest, rank })
    }

    /// Its step, where it is of `phase`.
    pub(crate) fn step_of(&self, phase: Phase) -> Option<u64> {
        (self.place[0] == phase as i64).then_some(self.place[1].unsigned_abs())
    }
}

/// The newest whole checkpoint of a phase, where it is newer than the step `held` that a rank has in memory. It can be: a
/// rank may die behind a step, having saved it, while others are not through it.
///
/// # Errors
/// As [`checkpoints::latest`].
pub(crate) fn newer_on_disk(
    plan: &StagePlan,
    held: Option<u64>,
) -> Result<Option<(Loaded, TrainState)>, TrainError> {
    let newest = checkpoint::list(&plan.checkpoint_dir)?.last().map_or(0, |listed| listed.step);
    if held.is_some_and(|held| newest <= held) {
        return Ok(None);
    }
    Ok(checkpoints::latest(plan)?.filter(|(_, state)| held.is_none_or(|held| state.step > held)))
}

impl Held {
    /// A phase before its first step, from the weights of `start` where given.
    ///
    /// # Errors
    /// [`TrainError::Weights`] when the weights do not fit.
    pub(crate) fn fresh(
        plan: &Plan,
        tools: &Tools,
        stage_plan: &StagePlan,
        start: Option<&HandedOver>,
    ) -> Result<Self, TrainError> {
        let (stage, pretrained) = build::stage(plan, tools, stage_plan.phase, start)?;
        let optimizer = AdamW::new(&stage.trainable(), &pretrained, &stage_plan.optim);
        Ok(Self { phase: stage_plan.phase, stage, optimizer, rest: Rest::default() })
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Weights`] where it is of another model.
    pub(crate) fn restore(&mut self, loaded: &Loaded, state: TrainState) -> Result<(), TrainError> {
        let weights = all_to_torch(&loaded.snapshot.model);
        build::copy_weights(&self.stage.trainable(), &weights, &loaded.path)?;
        self.optimizer.restore(&loaded.snapshot.optimizer)?;
        self.rest = Rest { state, ..Rest::default() };
        Ok(())
    }

    fn place(&self) -> Place {
        [self.phase as i64, self.rest.state.step as i64, i64::from(!self.rest.owed)]
    }

    /// Whether this is what all go on from.
    pub(crate) fn is(&self, furthest: &Furthest) -> bool {
        self.place() == furthest.place
    }

    /// All ranks go on from what `furthest` names: each calls this, with a phase that it holds or a fresh one. Gradients of a
    /// step that was under way are dropped.
    ///
    /// # Errors
    /// [`TrainError::Peer`] when a peer is gone. A rank that held the furthest then still does, another holds nothing of use.
    pub(crate) fn share(&mut self, group: &dyn ProcessGroup, furthest: &Furthest) -> Result<(), TrainError> {
        self.optimizer.drop_gradients();
        let is_there = self.is(furthest);
        let parameters = self.stage.trainable();
        for tensor in parameters.values().chain(self.optimizer.tensors()) {
            // Who has it listens all the same, but into the void: what comes is undefined where the sender dies.
            let mut into = match is_there && group.rank() != furthest.rank {
                true => tensor.detach().empty_like(),
                false => tensor.detach(),
            };
            group.broadcast(&mut into, furthest.rank)?;
        }
        let own = serde_json::to_vec(&(self.optimizer.steps(), &self.rest)).unwrap_or_default();
        let bytes = broadcast_bytes(group, furthest.rank, own)?;
        let (steps, rest) = serde_json::from_slice(&bytes).map_err(|error| TrainError::Weights {
            path: format!("state of rank {}", furthest.rank).into(),
            detail: error.to_string(),
        })?;
        if !is_there {
            self.optimizer.set_steps(steps);
            self.rest = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_rank_that_has_come_furthest_is_who_all_go_on_from() {
        let stage1 = |step, complete| [Phase::Stage1 as i64, step, complete];
        assert_eq!(Furthest::among(&[NOWHERE; 3]), None);
        let differ = [NOWHERE, stage1(7, 1), stage1(8, 0), stage1(8, 0)];
        let furthest = Furthest::among(&differ).expect("a step");
        assert_eq!((furthest.rank, furthest.step_of(Phase::Stage1)), (2, Some(8)));
        assert_eq!(furthest.step_of(Phase::Stage2), None);
        let saved = Furthest::among(&[stage1(8, 0), stage1(8, 1)]).expect("a step");
        assert_eq!(saved.rank, 1, "the second has validated and saved it");
        let later = Furthest::among(&[stage1(99, 1), [Phase::Stage2 as i64, 0, 1]]).expect("a step");
        assert_eq!((later.rank, later.step_of(Phase::Stage2)), (1, Some(0)));
    }
}
