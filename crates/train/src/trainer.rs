//! The one hub: next pairs, step, advance, record, validate, save.
//!
//! Each part is called once and never calls another part or the hub.

use std::collections::BTreeMap;
use std::time::Instant;

use collectives::{GradientReducer, ProcessGroup, Reduction};
use data::Counters;
use launch::WorkerPhase;
use monitor::memory::peak_rss_bytes;
use monitor::{RecordKind, StepRecord};
use tch::{Kind, Tensor};

use crate::agree::{all, from_rank0, gather_bytes};
use crate::checkpoints::{self, Checkpoints};
use crate::error::TrainError;
use crate::optim::{self, AdamW};
use crate::pairs::{MicroBatch, PairSource};
use crate::plan::StagePlan;
use crate::session::Session;
use crate::skipped_steps::SkippedStep;
use crate::stage::{self, ContrastAhead, Stage, StepLosses};
use crate::state::{Best, Skipped, TrainState};
use crate::status::Status;

/// After this many steps in a row that had to be left out, a phase goes back to its newest checkpoint.
const MAX_SKIPPED_IN_A_ROW: u64 = 20;

/// Why [`Trainer::run`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The phase's last step is taken.
    Done,
    /// Too many steps in a row were left out.
    Lost,
}

/// One phase of training on one rank.
pub struct Trainer<'a> {
    /// Process group, metrics, stop flag.
    pub session: &'a mut Session,
    /// Derived numbers of this phase.
    pub plan: &'a StagePlan,
    /// The model.
    pub stage: &'a mut Stage,
    /// Its optimizer.
    pub optimizer: &'a mut AdamW,
    /// Backward passes, in which gradients meet those of other ranks.
    pub reducer: Box<dyn GradientReducer>,
    /// Where pairs come from.
    pub pairs: PairSource<'a>,
    /// Where snapshots go.
    pub checkpoints: Checkpoints,
    /// Scores the model on the selection splits; higher is better.
    pub validate: &'a dyn Fn(&Stage, &dyn ProcessGroup) -> Result<Validation, TrainError>,
    /// What is resumed.
    pub state: &'a mut TrainState,
    /// See [`crate::held::Rest::owed`].
    pub owed: &'a mut bool,
    /// See [`crate::held::Rest::told`].
    pub told: &'a mut Vec<StepRecord>,
}

/// A validation: the score that selects, and the figures behind it.
pub struct Validation {
    /// Higher is better.
    pub score: f64,
    /// Shown in the dashboards.
    pub metrics: BTreeMap<String, f64>,
}

/// What one optimizer step did, the same on every rank.
struct StepReport {
    status: Status,
    skipped: Option<Skipped>,
    lr: f64,
    reduction: Reduction,
    /// What each rank left out.
    left_out: Vec<Counters>,
}

impl Trainer<'_> {
    /// Trains to the end of the phase, until somebody asks for a stop, or until it is lost.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] after a requested stop (a checkpoint was written), [`data::DataError::TooManySkipped`], a
    /// lost peer, or a disk that is full at the end of the phase.
    pub fn run(&mut self) -> Result<Ended, TrainError> {
        // A stop or a lost rank came before all was done that this step is followed by.
        *self.owed |= self.state.validation_due;
        if *self.owed
            && let Some(ended) = self.follow_up(false)?
        {
            return Ok(ended);
        }
        if self.plan.steps == 0 {
            // The weights that the config names are handed over as they are.
            self.checkpoints.save(self.state, self.stage, self.optimizer, false)?;
        }
        while self.state.step < self.plan.steps {
            let started = Instant::now();
            let (progress, step) = (&self.session.progress, self.state.step);
            progress.write(WorkerPhase::Data, step);
            let alive = || progress.write(WorkerPhase::Data, step);
            let micro_batches = self.pairs.next_step(self.plan, self.state, &alive)?;
            let data_wait_seconds = started.elapsed().as_secs_f64();
            let report = self.step(&micro_batches)?;
            // Up to here nothing can fail since the update: weights, state and record are of one step, whoever is lost.
            let step_seconds = started.elapsed().as_secs_f64();
            self.advance(&report, step_seconds);
            self.record(&report, step_seconds, data_wait_seconds);
            if let Some(ended) = self.follow_up(report.status.stop)? {
                return Ok(ended);
            }
        }
        Ok(Ended::Done)
    }

    /// What comes behind a step: judge the course, validate, save, stop.
    fn follow_up(&mut self, stop: bool) -> Result<Option<Ended>, TrainError> {
        self.state.left_out.check(self.session.plan.config.data.max_skipped_ratio)?;
        if self.state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW {
            return Ok(Some(Ended::Lost));
        }
        let improved = self.maybe_validate()?;
        let stop = stop || self.state.validation_due;
        self.maybe_save(improved, stop)?;
        *self.owed = false;
        if stop { Err(self.stopped()) } else { Ok(None) }
    }

    /// Forward, backward with reduction, decide together, update.
    fn step(&mut self, micro_batches: &[MicroBatch]) -> Result<StepReport, TrainError> {
        self.session.progress.write(WorkerPhase::Compute, self.state.step);
        let mut losses = Vec::with_capacity(micro_batches.len());
        let mut reduction = Reduction::default();
        let scale = self.state.loss_scale.factor(self.session.plan.autocast);
        let weights = stage::weights(micro_batches, self.session.group.as_ref())?;
        let ahead = self.contrast_ahead(micro_batches)?;
        for (i, weight) in weights.into_iter().enumerate() {
            let step_losses = self.forward(micro_batches, i, ahead.as_ref())?.weighted(weight);
            let loss = &step_losses.total * scale;
            if i + 1 < micro_batches.len() {
                self.reducer.accumulate(&loss)?;
            } else {
                // From here on this rank only waits: what it is late for is another's doing.
                let (progress, step) = (&self.session.progress, self.state.step);
                reduction = self.reducer.reduce(&loss, &|| progress.write(WorkerPhase::Reduce, step))?;
            }
            losses.push(step_losses);
        }
        self.stage.check_peers()?;
        let gradients = self.optimizer.gradients();
        let grad_norm = optim::norm(&gradients, scale);
        let left_out = self.pairs.left_out().total();
        let own = Status::of(&losses, grad_norm, self.session.stop.requested(), left_out);
        let status = own.all_reduce(self.session.group.as_ref())?;
        let left_out = self.left_out_by_all(&status)?;
        let lr = self.plan.schedule.lr(self.state.step);
        let skipped = self.state.judge(&status);
        let grad_divisor = optim::divisor(status.grad_norm, scale, self.plan.optim.max_grad_norm);
        if skipped.is_none() {
            self.optimizer.step(&gradients, lr, grad_divisor);
        }
        drop(gradients);
        self.optimizer.drop_gradients();
        Ok(StepReport { status, skipped, lr, reduction, left_out })
    }

    /// The first pass over a step whose contrast is cached; `None` where each micro-batch has a contrast of its own.
    fn contrast_ahead(&self, micro_batches: &[MicroBatch]) -> Result<Option<ContrastAhead>, TrainError> {
        if self.plan.contrast_parts == 1 {
            return Ok(None);
        }
        let features = micro_batches.iter().map(|batch| self.pairs.features(&batch.image));
        let (features, group): (Vec<Tensor>, _) = (features.collect(), self.session.group.as_ref());
        Ok(Some(self.autocast(|| self.stage.contrast_ahead(micro_batches, &features, group))?))
    }

    /// One forward with a graph. Dropout's generator is set anew for each: no state to resume, and ranks differ.
    fn forward(
        &self,
        micro_batches: &[MicroBatch],
        which: usize,
        ahead: Option<&ContrastAhead>,
    ) -> Result<StepLosses, TrainError> {
        let (batch, group) = (&micro_batches[which], self.session.group.as_ref());
        let losses = match ahead {
            Some(ahead) => {
                tch::manual_seed(batch.dropout_seed);
                self.autocast(|| self.stage.losses_behind(ahead, which, group))?
            }
            None => {
                let features = self.pairs.features(&batch.image);
                tch::manual_seed(batch.dropout_seed);
                self.autocast(|| self.stage.losses(batch, &features, group))?
            }
        };
        Ok(losses)
    }

    /// A region of its own for each pass, as [`torch_bridge::autocast`] asks where one of them has no graph.
    fn autocast<T>(&self, pass: impl FnOnce() -> T) -> T {
        torch_bridge::autocast(self.session.plan.device, self.session.plan.autocast, pass)
    }

    fn advance(&mut self, report: &StepReport, step_seconds: f64) {
        if let Some(why) = report.skipped {
            self.tell_of_skipped(why, &report.status);
        }
        self.state.step += 1;
        self.state.pairs_seen += self.plan.global_batch as u64;
        self.state.train_seconds += step_seconds;
        self.state.loss_scale.update(report.status.finite);
        if report.skipped.is_some() {
            self.state.skipped_in_a_row += 1;
            self.state.steps_skipped += 1;
        } else {
            self.state.skipped_in_a_row = 0;
        }
        report.left_out.iter().for_each(|counters| self.state.left_out.merge(counters));
        // Each pair that was asked for is looked at once.
        self.state.left_out.seen = self.state.pairs_seen;
        *self.owed = true;
        self.told.clear();
    }

    /// Kept until the next step: rank 0, the one that writes it, may be lost before it has.
    fn tell(&mut self, record: StepRecord) {
        self.session.metrics.record(&record);
        self.told.push(record);
    }

    /// Warns, and writes down which samples the step had. fp16's search for a scale is no news.
    fn tell_of_skipped(&mut self, why: Skipped, status: &Status) {
        let too_large_a_scale = self.session.plan.autocast == Some(Kind::Half)
            && status.losses.values().all(|loss| loss.is_finite());
        if !self.session.is_rank0() || (why == Skipped::NotFinite && too_large_a_scale) {
            return;
        }
        let samples = self.pairs.keys(self.state.pairs_seen, self.plan.global_batch);
        let skipped = SkippedStep::new(self.plan.phase, self.state, why, status, samples);
        self.session.metrics.warn(skipped.write(&self.session.plan.config.run.dir));
    }

    /// What each rank left out in this step, which only a step asks for in which there is something.
    fn left_out_by_all(&self, status: &Status) -> Result<Vec<Counters>, TrainError> {
        if status.left_out == 0 {
            return Ok(Vec::new());
        }
        let own = serde_json::to_vec(&self.pairs.left_out()).unwrap_or_default();
        let texts = gather_bytes(self.session.group.as_ref(), &own)?;
        Ok(texts.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect())
    }

    fn record(&mut self, report: &StepReport, step_seconds: f64, data_wait_seconds: f64) {
        let left_out = self.state.left_out.by_reason().into_iter();
        let record = StepRecord {
            pairs_seen: self.state.pairs_seen,
            losses: report.status.losses.clone(),
            metrics: report.status.metrics.clone(),
            lr: Some(report.lr),
            grad_norm: Some(report.status.grad_norm),
            pairs_per_second: self.plan.global_batch as f64 / step_seconds,
            step_seconds,
            data_wait_seconds,
            comm_seconds: report.reduction.busy_seconds,
            comm_hidden_seconds: report.reduction.hidden_seconds(),
            bytes_reduced: report.reduction.bytes,
            peak_memory_bytes: peak_rss_bytes().unwrap_or(0),
            left_out: left_out.map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
            ..StepRecord::new(self.plan.phase, RecordKind::Step, self.state.step)
        };
        self.tell(record);
    }

    fn stopped(&self) -> TrainError {
        TrainError::Stopped { phase: self.plan.phase.name().into(), step: self.state.step }
    }

    /// Its score where this step is the best so far. Ranks share the work and get the same score, so all agree; where one
    /// of them is asked to stop, all leave the validation to the next launch.
    fn maybe_validate(&mut self) -> Result<Option<Best>, TrainError> {
        let every = self.plan.validate_every_steps;
        if every == 0 || (!self.state.step.is_multiple_of(every) && self.state.step != self.plan.steps) {
            return Ok(None);
        }
        let (stage, validate, group) = (&*self.stage, self.validate, self.session.group.as_ref());
        self.session.progress.write(WorkerPhase::Validate, self.state.step - 1);
        let validation = self.optimizer.with_average(|| tch::no_grad(|| validate(stage, group)));
        if matches!(validation, Err(TrainError::Interrupted { .. })) {
            self.state.validation_due = true;
            return Ok(None);
        }
        let validation = validation?;
        self.state.validation_due = false;
        // Rank 0's: ranks of another kind of processor may see another last digit, and a checkpoint is saved by all or none.
        let score = from_rank0(group, validation.score)?;
        let improved = self.state.best.is_none_or(|best| score > best.score);
        let best = Best { step: self.state.step, score };
        self.tell(StepRecord {
            pairs_seen: self.state.pairs_seen,
            metrics: validation.metrics,
            ..StepRecord::new(self.plan.phase, RecordKind::Validation, self.state.step)
        });
        Ok(improved.then_some(best))
    }

    /// Nothing is left out just now: a checkpoint that a phase goes back to is of such a step.
    fn is_good(&self) -> bool {
        self.state.skipped_in_a_row == 0
    }

    fn maybe_save(&mut self, improved: Option<Best>, stop: bool) -> Result<(), TrainError> {
        self.session.progress.write(WorkerPhase::Save, self.state.step - 1);
        let is_last = self.state.step == self.plan.steps;
        if is_last {
            // What is handed over has seen the last step.
            self.optimizer.update_average();
        }
        let warning = if is_last || stop || improved.is_some() {
            self.save_now(improved, is_last || stop)?
        } else if self.is_good() && self.state.step.is_multiple_of(self.plan.checkpoint_every_steps) {
            self.checkpoints.submit(self.state, self.stage, self.optimizer)
        } else {
            None
        };
        if let Some(warning) = warning {
            self.session.metrics.warn(warning);
        }
        if self.checkpoints.saved() > 0 {
            self.session.progress.saved(self.plan.phase as u16, self.checkpoints.saved());
        }
        Ok(())
    }

    /// Saves before training goes on. All ranks wait for the one that writes, in a phase that leaves a disk its time, and
    /// learn whether it could. Returns what a person should know.
    fn save_now(&mut self, improved: Option<Best>, needed: bool) -> Result<Option<String>, TrainError> {
        let before = self.state.best;
        self.state.best = improved.or(before);
        let saved = self.checkpoints.save(self.state, self.stage, self.optimizer, improved.is_some());
        let all_saved = all(self.session.group.as_ref(), saved.is_ok());
        if !matches!(all_saved, Ok(true)) {
            // A best step that is not on the disk must not keep a lesser one from getting there.
            self.state.best = before;
        }
        let all_saved = all_saved?;
        match saved {
            Err(error) if needed => Err(error),
            // Who ends here without a checkpoint must not say that there is one.
            Ok(_) if needed && !all_saved => {
                Err(TrainError::NotSaved { dir: self.plan.checkpoint_dir.clone() })
            }
            saved => Ok(saved.err().map(|error| checkpoints::not_written(&error))),
        }
    }
}
