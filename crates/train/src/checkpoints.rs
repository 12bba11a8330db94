//! Snapshots of one phase on their way to disk. Rank 0 writes; the other ranks hold the same weights.

use std::path::{Path, PathBuf};

use checkpoint::{CheckpointError, Loaded, Saved, Snapshot, Store, TensorMap, Writer};

use crate::config::HandOver;
use crate::error::TrainError;
use crate::frozen::{Frozen, Origin, differ};
use crate::optim::AdamW;
use crate::plan::StagePlan;
use crate::stage::Stage;
use crate::state::TrainState;
use crate::tensors::to_host;

/// Names of the averaged weights inside `optimizer.safetensors`.
pub(crate) const AVERAGE: &str = "average.";

/// Where a phase's snapshots go.
pub struct Checkpoints {
    writer: Option<Writer>,
    phase: String,
    origin: Origin,
}

/// What a phase hands over, or the config names.
pub struct HandedOver {
    /// The checkpoint, or the folder of an import.
    pub path: PathBuf,
    /// Its weights, averaged ones where an average is kept.
    pub weights: TensorMap,
    /// What had to be passed over.
    pub warnings: Vec<String>,
}

impl Checkpoints {
    /// Opens the phase's folder on rank 0; elsewhere saving does nothing.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when the folder cannot be made.
    pub fn open(plan: &StagePlan, is_rank0: bool, origin: Origin) -> Result<Self, TrainError> {
        let writer = match is_rank0 {
            true => Some(Writer::new(Store::open(&plan.checkpoint_dir, plan.keep_checkpoints)?)),
            false => None,
        };
        Ok(Self { writer, phase: plan.phase.name().into(), origin })
    }

    /// Pins the best step where a crash came between its save and its pin.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when the disk fails.
    pub fn pin_best(&self, state: &TrainState) -> Result<(), TrainError> {
        let (Some(writer), Some(best)) = (&self.writer, state.best) else { return Ok(()) };
        let store = writer.store();
        let pinned = checkpoint::pinned(store.dir())?.map(|listed| listed.step);
        if pinned != Some(best.step) && store.list()?.iter().any(|listed| listed.step == best.step) {
            store.pin(best.step)?;
        }
        Ok(())
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

    /// The furthest step of the phase that this launch has brought to the disk; 0 for none, and on ranks other than 0.
    #[must_use]
    pub fn saved(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::saved)
    }

    /// Waits for the save that is being written. Returns what went wrong with it.
    pub fn finish(&mut self) -> Option<String> {
        self.writer.as_mut()?.finish().and_then(describe)
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
            config: self.origin.config.clone(),
            phase: self.phase.clone(),
            parent: self.origin.parent.clone(),
            frozen: self.origin.frozen.clone(),
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

/// What a phase hands over: the averaged weights of its best validated step, or of its last one, as the config asks or where
/// there is no best. Where that one is damaged, of the newest whole one, with a warning.
///
/// # Errors
/// [`TrainError::Checkpoint`] when none is whole, [`TrainError::Weights`] when there is none.
pub fn handed_over(plan: &StagePlan) -> Result<HandedOver, TrainError> {
    let mut warnings = Vec::new();
    let pinned = match plan.hand_over {
        HandOver::Best => checkpoint::pinned(&plan.checkpoint_dir)?,
        HandOver::Last => None,
    };
    let best = pinned.and_then(|best| match checkpoint::load(&best.path) {
        Ok((_, snapshot)) => Some((best.path, snapshot)),
        Err(error) => {
            let cause = launch::with_causes(&error);
            warnings
                .push(format!("{cause}; not the best step but the newest whole checkpoint is handed over"));
            None
        }
    });
    let (path, snapshot) = match best {
        Some(best) => best,
        None => {
            let newest =
                checkpoint::latest_valid(&plan.checkpoint_dir)?.ok_or_else(|| TrainError::Weights {
                    path: plan.checkpoint_dir.clone(),
                    detail: "holds no checkpoint".into(),
                })?;
            warnings.extend(newest.warnings);
            (newest.path, newest.snapshot)
        }
    };
    Ok(HandedOver { path, weights: averaged(snapshot), warnings })
}

/// The weights of `folder`, which a config names: a checkpoint, or what an import made of a BLIP-2. `vision` is the digest of
/// the image encoder beside which they are to go on; an import does not tell its own.
///
/// # Errors
/// [`TrainError::Checkpoint`] for a damaged checkpoint, [`TrainError::Weights`] for one that was trained beside another image
/// encoder, and for a folder that is neither.
pub fn named(folder: &Path, vision: &str) -> Result<HandedOver, TrainError> {
    let refuse = |detail: &str| TrainError::Weights { path: folder.to_owned(), detail: detail.into() };
    let imported = folder.join("bridge").join("model.safetensors");
    let weights = if folder.join(checkpoint::MANIFEST).is_file() {
        let (_, snapshot) = checkpoint::load(folder)?;
        if snapshot.frozen.get(Frozen::Vision.name()).is_some_and(|then| differ(then, vision)) {
            return Err(refuse(
                "was trained beside another image encoder; name that one as model.vision.weights",
            ));
        }
        averaged(snapshot)
    } else if imported.is_file() {
        checkpoint::read_safetensors(&imported)?
    } else {
        return Err(refuse("is no checkpoint, and no folder that `blip2 import` made of a BLIP-2"));
    };
    Ok(HandedOver { path: folder.to_owned(), weights, warnings: Vec::new() })
}

/// A checkpoint's weights, averaged ones where an average is kept.
fn averaged(snapshot: Snapshot) -> TensorMap {
    let mut weights = snapshot.model;
    for (name, average) in snapshot.optimizer {
        if let Some(parameter) = name.strip_prefix(AVERAGE) {
            weights.insert(parameter.to_owned(), average);
        }
    }
    weights
}

impl HandedOver {
    /// `PHASE/FOLDER`: the same wherever the run folder lies.
    #[must_use]
    pub fn name(&self) -> String {
        let parts: Vec<_> = self.path.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join("/")
    }
}

fn state_of(snapshot: &Snapshot, path: &Path) -> Result<TrainState, TrainError> {
    serde_json::from_value(snapshot.state.clone()).map_err(|error| TrainError::Weights {
        path: path.to_owned(),
        detail: format!("state.json is of another version of blip2: {error}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use std::collections::BTreeMap;

    use checkpoint::HostTensor;

    use super::*;
    use crate::config::{HandOver, OptimConfig};
    use crate::plan::Schedule;
    use crate::state::Best;

    fn plan(dir: &Path) -> StagePlan {
        StagePlan {
            phase: monitor::Phase::Stage1,
            steps: 9,
            global_batch: 1,
            micro_batch: 1,
            grad_accum_steps: 1,
            contrast_batch: 1,
            contrast_parts: 1,
            schedule: Schedule { peak_lr: 1.0, min_lr: 0.0, warmup_steps: 0, steps: 9 },
            optim: OptimConfig {
                peak_lr: 1.0,
                min_lr: 0.0,
                warmup_steps: 0,
                weight_decay: 0.0,
                betas: (0.9, 0.98),
                max_grad_norm: None,
                pretrained_lr_ratio: 1.0,
                word_embedding_lr_ratio: 1.0,
                ema_decay: None,
            },
            checkpoint_every_steps: 1,
            keep_checkpoints: 9,
            validate_every_steps: 1,
            hand_over: HandOver::Best,
            checkpoint_dir: dir.join("stage1"),
        }
    }

    /// Checkpoints of some steps, each with its step as its one weight.
    fn with_steps(dir: &Path, steps: &[u64]) -> StagePlan {
        let plan = plan(dir);
        let store = Store::open(&plan.checkpoint_dir, plan.keep_checkpoints).unwrap();
        for &step in steps {
            let weight = HostTensor::from_f32(&[1], &[step as f32]).unwrap();
            let state = TrainState { step, ..TrainState::default() };
            let snapshot = Snapshot {
                model: TensorMap::from([("weight".to_owned(), weight)]),
                state: serde_json::to_value(state).unwrap(),
                frozen: BTreeMap::from([("vision".to_owned(), "digest".to_owned())]),
                ..Snapshot::default()
            };
            store.save(&snapshot, step).unwrap();
        }
        plan
    }

    #[test]
    fn the_best_step_is_handed_over_and_a_damaged_one_gives_way_to_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let plan = with_steps(dir.path(), &[2, 4, 6]);
        assert_eq!(handed_over(&plan).unwrap().name(), "stage1/step-00000006");
        Store::open(&plan.checkpoint_dir, 9).unwrap().pin(4).unwrap();
        let best = handed_over(&plan).unwrap();
        assert_eq!((best.name().as_str(), best.warnings.len()), ("stage1/step-00000004", 0));
        let last = StagePlan { hand_over: HandOver::Last, ..plan.clone() };
        assert_eq!(handed_over(&last).unwrap().name(), "stage1/step-00000006", "as the config asks");
        std::fs::write(best.path.join("model.safetensors"), "no tensors").unwrap();
        let newest = handed_over(&plan).unwrap();
        assert_eq!(newest.name(), "stage1/step-00000006");
        assert!(newest.warnings[0].contains("step-00000004/model.safetensors"), "{:?}", newest.warnings);
        assert_eq!(newest.weights["weight"].to_f32_vec(), [6.0]);
    }

    #[test]
    fn a_config_may_name_a_checkpoint_or_an_import() {
        let dir = tempfile::tempdir().unwrap();
        let plan = with_steps(dir.path(), &[2]);
        let checkpoint = plan.checkpoint_dir.join("step-00000002");
        let found = named(&checkpoint, "digest").unwrap();
        assert_eq!(
            (found.name().as_str(), found.weights["weight"].to_f32_vec()),
            ("stage1/step-00000002", vec![2.0])
        );
        let refused = named(&checkpoint, "other").map(|_| ()).unwrap_err();
        assert_eq!(refused.exit(), launch::Exit::Config);
        assert!(refused.to_string().contains("another image encoder"), "{refused}");

        let import = dir.path().join("import");
        let refused = named(&import, "any").map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("import: is no checkpoint"), "{refused}");
        std::fs::create_dir_all(import.join("bridge")).unwrap();
        checkpoint::write_safetensors(
            &import.join("bridge/model.safetensors"),
            &found.weights,
            &Default::default(),
        )
        .unwrap();
        assert_eq!(named(&import, "any").unwrap().weights["weight"].to_f32_vec(), [2.0]);
    }

    #[test]
    fn a_pin_that_a_crash_left_out_is_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let plan = with_steps(dir.path(), &[2, 4, 6]);
        let pinned = || checkpoint::pinned(&plan.checkpoint_dir).unwrap().map(|listed| listed.step);
        let best = |step| TrainState { best: Some(Best { step, score: 0.5 }), ..TrainState::default() };
        let elsewhere = Checkpoints::open(&plan, false, Origin::default()).unwrap();
        elsewhere.pin_best(&best(4)).unwrap();
        assert_eq!(pinned(), None, "only rank 0 writes");
        let checkpoints = Checkpoints::open(&plan, true, Origin::default()).unwrap();
        for (step, expected) in [(4, 4), (6, 6), (3, 6)] {
            checkpoints.pin_best(&best(step)).unwrap();
            assert_eq!(pinned(), Some(expected), "best step {step}");
        }
    }
}
