//! What the launcher sees on the progress pages of its workers, told as lines or as a hang.

use crate::decide::Fleet;
use crate::fleet::Processes;
use crate::progress::{WorkerPhase, monotonic_ns};
use crate::standing::Standing;
use crate::straggler::Stragglers;
use crate::watchdog::{Hang, Patience, Vital, Watchdog};

/// One generation's watch over the workers of this node.
pub(crate) struct Watch {
    watchdog: Watchdog,
    stragglers: Stragglers,
    first_rank: usize,
    /// After a failure: its time on the monotonic clock, until training goes on.
    failed_ns: Option<u64>,
    /// The workers that were started last: where one of them has taken a step, training goes on.
    started: Vec<usize>,
    /// One of them has.
    pub goes_on: bool,
    /// How far the other nodes have come, as they last said.
    pub others: Option<Standing>,
}

/// What is worth telling.
pub(crate) enum Sight {
    Hang(Hang),
    Line(String),
}

impl Watch {
    pub(crate) fn new(patience: Patience, workers: usize, first_rank: usize, failed_ns: Option<u64>) -> Self {
        let watchdog = Watchdog::new(patience, workers, monotonic_ns());
        let started = (0..workers).collect();
        Self {
            watchdog,
            stragglers: Stragglers::default(),
            first_rank,
            failed_ns,
            started,
            goes_on: false,
            others: None,
        }
    }

    /// Other processes have taken the places of the workers `started`, after a failure at `failed_ns`.
    pub(crate) fn regrouped(&mut self, started: Vec<usize>, failed_ns: Option<u64>) {
        started.iter().for_each(|worker| self.watchdog.replaced(*worker, monotonic_ns()));
        (self.stragglers, self.started, self.failed_ns) = (Stragglers::default(), started, failed_ns);
        self.goes_on = false;
    }

    /// Reads all pages once.
    pub(crate) fn look(&mut self, processes: &Processes, fleet: &Fleet) -> Vec<Sight> {
        let mut sights = Vec::new();
        let beats: Vec<_> =
            (0..fleet.nproc).filter_map(|worker| Some((worker, processes.beat(worker)?))).collect();
        for (worker, beat) in &beats {
            self.watchdog.observe(*worker, beat.clone());
        }
        let mut started = beats.iter().filter(|(worker, _)| self.started.contains(worker));
        let going_on = started.find(|(_, beat)| beat.visits(WorkerPhase::Reduce).count > 0);
        self.goes_on |= going_on.is_some();
        if let (Some((_, beat)), Some(failed)) = (going_on, self.failed_ns) {
            self.failed_ns = None;
            let seconds = beat.since_ns.saturating_sub(failed) as f64 * 1e-9;
            sights.push(Sight::Line(format!(
                "going on: step {} done {seconds:.2} s after the failure",
                beat.step
            )));
        }
        if fleet.cause().is_some() || fleet.told_to_end.is_some() {
            return sights;
        }
        let (running, vital) = (|worker| processes.is_running(worker), |worker| processes.vital(worker));
        if fleet.hang.is_none()
            && let Some(hang) = self.watchdog.hang(monotonic_ns(), self.others, &running, &vital)
        {
            sights.push(Sight::Hang(hang));
        }
        let training: Vec<_> = beats.into_iter().map(|(_, beat)| beat).collect();
        let stopped = |worker| vital(worker) == Vital::Stopped;
        if training.len() == fleet.nproc
            && let Some(slow) = self.stragglers.observe(training, &stopped)
        {
            let (rank, share) = (self.first_rank + slow.worker, 100.0 * slow.lost_share);
            sights.push(Sight::Line(format!(
                "rank {rank} is slow: the others wait {share:.0} % of the time for it"
            )));
        }
        sights
    }

    /// How far this node has come.
    pub(crate) fn standing(&self, processes: &Processes) -> Option<Standing> {
        self.watchdog.standing(monotonic_ns(), &|worker| processes.is_running(worker))
    }
}
