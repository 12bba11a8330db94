//! What lives as long as the process: the plan, the other ranks, the dashboards, the wish to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use collectives::{CommError, ProcessGroup, SoloGroup, WatchedGroup};
use data::Counters;
use launch::{ProgressPage, RunLock, Source, StopFlag, WorkerPhase, World};
use monitor::{Metrics, Phase, Start};

use crate::agree::same_name;
use crate::changes;
use crate::config::Config;
use crate::error::TrainError;
use crate::held::{Furthest, Held, newer_on_disk};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::sizes;

/// One worker of one run.
pub struct Session {
    /// Every derived number.
    pub plan: Plan,
    /// The other ranks; who waits for them says so on the page below.
    pub group: Box<dyn ProcessGroup>,
    /// Dashboards; silent on ranks other than 0.
    pub metrics: Metrics,
    /// Set by SIGTERM, SIGINT, SIGUSR1.
    pub stop: StopFlag,
    /// What this rank is doing, for the launcher to see.
    pub progress: Arc<ProgressPage>,
    /// What the run cost so far.
    pub ledger: Ledger,
    /// The resolved config as text.
    pub config_text: String,
    /// The last launch in this run folder had the same config.
    pub unchanged: bool,
    /// What this rank held of a phase when it lost another rank.
    pub(crate) held: Option<Held>,
    /// Who holds most of all ranks.
    pub(crate) furthest: Option<Furthest>,
    /// Where the config was read.
    path: PathBuf,
    /// Held by rank 0 for as long as the session lives.
    lock: Option<RunLock>,
}

/// For so long a rank waits to be called after it has lost another. The launcher calls at once where one has died; where it
/// does not, something else is wrong.
const CALL_WITHIN: Duration = Duration::from_secs(10);

impl Session {
    /// Checks the config.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a config that cannot run.
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let world = World::from_env()?;
        launch::die_with_parent(&world)?;
        let stop = StopFlag::install()?;
        let progress = Arc::new(ProgressPage::from_env());
        let config = Config::read(path, overrides)?;
        let config_text = config.to_toml()?;
        let plan = Plan::new(config, world, path)?;
        let run_dir = plan.config.run.dir.clone();
        Ok(Self {
            group: Box::new(SoloGroup::new(plan.device)),
            metrics: Metrics::open(&run_dir, false, Start::Fresh, &config_text),
            ledger: Ledger::open(&run_dir),
            plan,
            stop,
            progress,
            config_text,
            unchanged: false,
            held: None,
            furthest: None,
            path: path.to_owned(),
            lock: None,
        })
    }

    /// Where this process is to take the place of a rank that dies: waits to be called.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`] when somebody asks for a stop.
    pub fn wait_for_place(&mut self) -> Result<(), TrainError> {
        let generation = self.plan.world.generation;
        match self.progress.wait_for_call(generation, Duration::MAX, &self.stop) {
            Some(call) => {
                self.plan.world = self.plan.world.called(call);
                Ok(())
            }
            None => Err(TrainError::Interrupted { phase: "waiting".into() }),
        }
    }

    /// It is, and has not been called yet.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        matches!(self.plan.world.source, Source::Spare { .. })
    }

    /// Takes the run folder, meets the other ranks and finds out with them where the run stands; rank 0 opens its records there.
    ///
    /// # Errors
    /// [`launch::LaunchError::Busy`] when another run holds the folder, [`TrainError::Peer`] when the ranks do not meet,
    /// [`TrainError::Config`] for a config that another rank does not have,
    /// or not in a folder that holds what another one trained.
    pub fn meet(&mut self) -> Result<(), TrainError> {
        let (is_rank0, run_dir) = (self.is_rank0(), self.plan.config.run.dir.clone());
        if is_rank0 && self.lock.is_none() {
            self.lock = Some(RunLock::of_worker(&run_dir)?);
        }
        self.progress.write(WorkerPhase::Meet, 0);
        let group = collectives::connect(&self.plan.world, self.plan.device)?;
        self.group = Box::new(WatchedGroup::new(group, Arc::clone(&self.progress)));
        agree_on_config(self.group.as_ref(), &self.config_text, &self.path)?;
        self.furthest = Furthest::of(self.group.as_ref(), self.held.as_ref())?;
        if self.plan.regroups() {
            self.progress.met(self.plan.world.generation);
        }
        // Reading a checkpoint to know its step is for the rank that keeps the records.
        let start = if is_rank0 { start(&self.plan, self.furthest)? } else { Start::Fresh };
        self.metrics = Metrics::open(&run_dir, is_rank0, start, &self.config_text);
        let kept = run_dir.join("config.toml");
        let before = std::fs::read_to_string(&kept).ok();
        self.unchanged = before.as_ref() == Some(&self.config_text);
        if let Some(before) = before.filter(|_| !self.unchanged) {
            changes::check(&before, &self.plan)?.into_iter().for_each(|warning| self.metrics.warn(warning));
        }
        // Every rank has looked before rank 0 writes.
        self.group.barrier()?;
        if is_rank0 {
            if !self.unchanged {
                changes::forget_report(&run_dir)?;
            }
            checkpoint::write_durably(&kept, self.config_text.as_bytes())?;
            self.metrics.line(&self.plan.describe());
            // What is wrong with the language model's files is told where all ranks read them.
            let language = sizes::describe_language(&self.plan).ok().flatten();
            language.iter().for_each(|line| self.metrics.line(line));
        }
        Ok(())
    }

    /// Leaves ranks of which one is lost, and waits to be called to the meeting of those that are left with whoever takes its
    /// place.
    ///
    /// # Errors
    /// `lost` where this rank is not to outlive it, or nobody calls.
    pub fn leave(&mut self, lost: CommError) -> Result<(), TrainError> {
        // Ranks that wait for this one and not for the lost one hear of it too.
        self.group.abort();
        if !self.plan.regroups() || !lost.is_of_peers() {
            return Err(lost.into());
        }
        let generation = self.plan.world.generation;
        let Some(call) = self.progress.wait_for_call(generation, CALL_WITHIN, &self.stop) else {
            return Err(lost.into());
        };
        eprintln!("blip2: {lost}; called to generation {}", call.generation);
        self.plan.world = self.plan.world.called(call);
        self.group = Box::new(SoloGroup::new(self.plan.device));
        Ok(())
    }

    /// For work that leaves no checkpoint: ends it where somebody asked for a stop. All ranks get the signal from the
    /// launcher, so none of them asks the others.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`].
    pub fn check_stop(&self, phase: Phase) -> Result<(), TrainError> {
        self.progress.tick(WorkerPhase::Features);
        match self.stop.requested() {
            true => Err(TrainError::Interrupted { phase: phase.name().into() }),
            false => Ok(()),
        }
    }

    /// Warns of samples that `what` left out on all ranks together, and of the worst shards.
    pub fn tell_left_out(&mut self, what: &str, left_out: &Counters) {
        if left_out.total() > 0 {
            let (count, seen, worst) = (left_out.total(), left_out.seen, left_out.worst(5));
            self.metrics.warn(format!("{what}: {count} of {seen} samples left out: {worst}"));
        }
    }

    /// True on the rank that writes.
    #[must_use]
    pub fn is_rank0(&self) -> bool {
        self.plan.world.rank == 0
    }
}

/// All ranks run the same: another learning rate on one node would part the models without a word.
fn agree_on_config(group: &dyn ProcessGroup, text: &str, path: &Path) -> Result<(), TrainError> {
    if same_name(group, text.as_bytes())? {
        return Ok(());
    }
    let rank = group.rank();
    let detail = format!(
        "rank {rank} reads another config than other ranks do: all nodes need the same file and --set"
    );
    Err(TrainError::Config { path: path.to_owned(), detail })
}

/// Where the run stands: in the last phase that has a checkpoint, or that a rank holds, at the later of the two.
fn start(plan: &Plan, furthest: Option<Furthest>) -> Result<Start, TrainError> {
    let phases = [plan.stage2_without_stage1.as_ref(), Some(&plan.stage2), Some(&plan.stage1)];
    for phase in phases.into_iter().flatten() {
        let held = furthest.and_then(|furthest| furthest.step_of(phase.phase));
        let saved = newer_on_disk(phase, held)?.map(|(loaded, _)| loaded.step);
        if let Some(step) = saved.or(held) {
            return Ok(Start::Resumed { phase: phase.phase, step });
        }
    }
    Ok(Start::Fresh)
}
