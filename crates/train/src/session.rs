//! What lives as long as the process: the plan, the other ranks, the dashboards, the wish to stop.

use std::path::Path;
use std::sync::Arc;

use collectives::{ProcessGroup, WatchedGroup};
use data::Counters;
use launch::{ProgressPage, RunLock, StopFlag, WorkerPhase, World};
use monitor::{Metrics, Phase, Start};

use crate::agree::same_name;
use crate::changes;
use crate::checkpoints;
use crate::config::Config;
use crate::error::TrainError;
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
    /// Held by rank 0 for as long as the session lives.
    _lock: Option<RunLock>,
}

impl Session {
    /// Checks the config, takes the run folder, meets the other ranks.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a config that cannot run, or not in a folder that holds what another one trained,
    /// [`launch::LaunchError::Busy`] when another run holds the folder, [`TrainError::Peer`] when the ranks do not
    /// meet.
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self, TrainError> {
        let world = World::from_env()?;
        launch::die_with_parent(&world)?;
        let stop = StopFlag::install()?;
        let progress = Arc::new(ProgressPage::from_env());
        let config = Config::read(path, overrides)?;
        let config_text = config.to_toml()?;
        let plan = Plan::new(config, world, path)?;
        let is_rank0 = plan.world.rank == 0;
        let run_dir = plan.config.run.dir.clone();
        let lock = if is_rank0 { Some(RunLock::of_worker(&run_dir)?) } else { None };
        progress.write(WorkerPhase::Meet, 0);
        let group = collectives::connect(&plan.world, plan.device)?;
        let group: Box<dyn ProcessGroup> = Box::new(WatchedGroup::new(group, Arc::clone(&progress)));
        agree_on_config(group.as_ref(), &config_text, path)?;
        // Reading a checkpoint to know its step is for the rank that keeps the records.
        let start = if is_rank0 { start(&plan)? } else { Start::Fresh };
        let mut metrics = Metrics::open(&run_dir, is_rank0, start, &config_text);
        let ledger = Ledger::open(&run_dir);
        let kept = run_dir.join("config.toml");
        let before = std::fs::read_to_string(&kept).ok();
        let unchanged = before.as_ref() == Some(&config_text);
        if let Some(before) = before.filter(|_| !unchanged) {
            changes::check(&before, &plan)?.into_iter().for_each(|warning| metrics.warn(warning));
        }
        // Every rank has looked before rank 0 writes.
        group.barrier()?;
        if is_rank0 {
            if !unchanged {
                changes::forget_report(&run_dir)?;
            }
            checkpoint::write_durably(&kept, config_text.as_bytes())?;
            metrics.line(&plan.describe());
            // What is wrong with the language model's files is told where all ranks read them.
            sizes::describe_language(&plan).ok().flatten().iter().for_each(|line| metrics.line(line));
        }
        Ok(Self { plan, group, metrics, stop, progress, ledger, config_text, unchanged, _lock: lock })
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

/// Where the last launch got to: the newest checkpoint of the last phase that has one.
fn start(plan: &Plan) -> Result<Start, TrainError> {
    let phases = [plan.stage2_without_stage1.as_ref(), Some(&plan.stage2), Some(&plan.stage1)];
    for phase in phases.into_iter().flatten() {
        if let Some((loaded, _)) = checkpoints::latest(phase)? {
            return Ok(Start::Resumed { phase: phase.phase, step: loaded.step });
        }
    }
    Ok(Start::Fresh)
}
