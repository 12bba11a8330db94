//! Which worker hangs. No process, no page and no clock in here.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::progress::{Beat, WorkerPhase};
use crate::standing::Standing;

/// Phases that come again and again and take alike. A slow disk must not make a checkpoint a hang.
const LEARNED: [WorkerPhase; 5] = [
    WorkerPhase::Data,
    WorkerPhase::Compute,
    WorkerPhase::Exchange,
    WorkerPhase::Reduce,
    WorkerPhase::Validate,
];
/// Durations of a phase that are remembered.
const REMEMBERED: usize = 256;

/// How long a worker may say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In a phase of which nobody knows how long it may take: loading, a checkpoint, the first step, the first
    /// validation.
    pub unknown: Duration,
    /// From its start until it waits for the other ranks, who give up on it a little later and would be blamed for that.
    pub start: Duration,
    /// In any phase, however short it usually is. Half a second is left of the ten that a hang may take to be seen.
    pub floor: Duration,
    /// Above the floor: so many times the 99th percentile of what the phase took before.
    pub factor: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            unknown: Duration::from_secs(1800),
            start: Duration::from_secs(240),
            floor: Duration::from_millis(9500),
            factor: 5,
        }
    }
}

/// What the system says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vital {
    /// Somebody stopped it.
    Stopped,
    /// Its main thread computes.
    Computes,
    /// Its main thread would compute, but most of the time other programs had the processors.
    Starved,
    /// Its main thread waits for something.
    Waits,
}

/// A worker that has said nothing for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hang {
    /// Number on this node.
    pub worker: usize,
    pub phase: WorkerPhase,
    pub step: u64,
    pub silent: Duration,
    pub stopped: bool,
}

impl fmt::Display for Hang {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.stopped { "is stopped (SIGSTOP)" } else { "hangs" };
        let (phase, step) = (self.phase.name(), self.step);
        write!(
            out,
            "{how} in phase {phase} of step {step}: no progress for {:.1} s",
            self.silent.as_secs_f64()
        )
    }
}

/// Learns how long phases take and finds who is late.
#[derive(Debug)]
pub(crate) struct Watchdog {
    patience: Patience,
    /// By phase, of all workers of this node.
    durations: Vec<VecDeque<u64>>,
    seen: Vec<Beat>,
}

impl Watchdog {
    /// `now_ns` is when the workers were started: one that never says a word hangs from then on.
    pub(crate) fn new(patience: Patience, workers: usize, now_ns: u64) -> Self {
        let durations = vec![VecDeque::new(); WorkerPhase::ALL.len()];
        Self { patience, durations, seen: vec![Beat::first(now_ns); workers] }
    }

    /// Another process has taken the place of `worker`.
    pub(crate) fn replaced(&mut self, worker: usize, now_ns: u64) {
        self.seen[worker] = Beat::first(now_ns);
    }

    /// Takes note of what a worker's page says now.
    pub(crate) fn observe(&mut self, worker: usize, beat: Beat) {
        let before = std::mem::replace(&mut self.seen[worker], beat.clone());
        if before.sequence == beat.sequence {
            return;
        }
        let left = |phase| beat.visits(phase).count > before.visits(phase).count;
        if left(WorkerPhase::Load) {
            // Another stage computes other things.
            self.durations.iter_mut().for_each(VecDeque::clear);
            return;
        }
        for phase in LEARNED.into_iter().filter(|phase| left(*phase)) {
            // The first visit warms caches and compiles kernels: it tells nothing of the next.
            if before.visits(phase).count > 0 {
                let durations = &mut self.durations[phase as usize];
                durations.push_back(beat.visits(phase).last_ns);
                if durations.len() > REMEMBERED {
                    durations.pop_front();
                }
            }
        }
    }

    /// The worker to blame where one is overdue. `vital` is asked only then; `is_running` leaves out those that ended.
    ///
    /// One that somebody stopped is blamed wherever it stands. When another hangs, its peers soon wait for it and are
    /// silent too: so blame goes to the one that has come least far and does not merely wait for peers, of equals to
    /// the one that computes; and only if it is overdue itself, for a peer may wait for one that writes a checkpoint, and has
    /// had a processor. Where all wait for peers, none has waited in vain for longer than the last to come. While a rank of
    /// another node, of which `others` tells, has come less far, the watchdog there has the word.
    pub(crate) fn hang(
        &self,
        now_ns: u64,
        others: Option<Standing>,
        is_running: &dyn Fn(usize) -> bool,
        vital: &dyn Fn(usize) -> Vital,
    ) -> Option<Hang> {
        let running = || self.running(is_running);
        let silent_for = |least: Duration| move |&(_, beat): &(usize, &Beat)| silence(beat, now_ns) > least;
        let hang = |(worker, beat): (usize, &Beat), stopped| {
            let silent = silence(beat, now_ns);
            Hang { worker, phase: beat.phase, step: beat.step, silent, stopped }
        };
        let mut silent = running().filter(silent_for(self.patience.floor)).peekable();
        silent.peek()?;
        if let Some(stopped) = silent.find(|(worker, _)| vital(*worker) == Vital::Stopped) {
            return Some(hang(stopped, true));
        }
        let distance = |&(worker, beat): &(usize, &Beat)| {
            let computes = matches!(vital(worker), Vital::Computes | Vital::Starved);
            let waits = beat.phase.waits_for_peers();
            // Of equals the one that came first; of those that wait the last, who has waited as long as all have.
            let came = if waits { u64::MAX - beat.since_ns } else { beat.since_ns };
            (waits, beat.step, beat.phase, !computes, came)
        };
        let last = running().min_by_key(distance)?;
        let own = Standing::of(last.1, silence(last.1, now_ns));
        let all_silent_for = |least| {
            running().all(|worker| silent_for(least)(&worker))
                && others.is_none_or(|others| others.silent() > least)
        };
        let overdue = match self.deadline(last.1.phase) {
            Some(_) if others.is_some_and(|others| others.is_behind(&own)) => false,
            // All wait for peers: the last to come may have come just now.
            Some(deadline) if last.1.phase.waits_for_peers() => all_silent_for(deadline),
            Some(deadline) => silent_for(deadline)(&last),
            // Nobody knows how long this may take; where the others get on, it may be waiting for them.
            None => all_silent_for(self.patience.unknown),
        };
        (overdue && vital(last.0) != Vital::Starved).then(|| hang(last, false))
    }

    /// How far this node has come; `None` where no worker runs.
    pub(crate) fn standing(&self, now_ns: u64, is_running: &dyn Fn(usize) -> bool) -> Option<Standing> {
        let standings = self.running(is_running).map(|(_, beat)| Standing::of(beat, silence(beat, now_ns)));
        standings.reduce(Standing::and)
    }

    fn running(&self, is_running: &dyn Fn(usize) -> bool) -> impl Iterator<Item = (usize, &Beat)> {
        self.seen.iter().enumerate().filter(|(worker, _)| is_running(*worker))
    }

    /// How long a phase may take; `None` for one that is not learned, or not yet. One that waits for peers, who may be
    /// on another node with a watchdog of its own, is given twice the time, so that the one that they wait for is
    /// blamed first.
    fn deadline(&self, phase: WorkerPhase) -> Option<Duration> {
        if phase == WorkerPhase::Start {
            return Some(self.patience.start);
        }
        let p99 = p99(&self.durations[phase as usize])?;
        let learned = self.patience.floor.max(Duration::from_nanos(p99) * self.patience.factor);
        Some(if phase.waits_for_peers() { learned * 2 } else { learned })
    }
}

fn silence(beat: &Beat, now_ns: u64) -> Duration {
    Duration::from_nanos(now_ns.saturating_sub(beat.since_ns))
}

fn p99(durations: &VecDeque<u64>) -> Option<u64> {
    let mut sorted: Vec<u64> = durations.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1))).copied()
}

#[cfg(test)]
#[path = "watchdog_tests.rs"]
mod tests;
