//! Which worker hangs. No process, no page and no clock in here.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::progress::{Beat, WorkerPhase};

/// Phases that come again and again and take alike. A slow disk must not make a checkpoint a hang.
const LEARNED: [WorkerPhase; 4] =
    [WorkerPhase::Data, WorkerPhase::Compute, WorkerPhase::Reduce, WorkerPhase::Validate];
/// Durations of a phase that are remembered.
const REMEMBERED: usize = 256;

/// How long a worker may say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In a phase of which nobody knows how long it may take: loading, a checkpoint, the first step, the first
    /// validation.
    pub unknown: Duration,
    /// In any phase, however short it usually is. Half a second is left of the ten that a hang may take to be seen.
    pub floor: Duration,
    /// Above the floor: so many times the 99th percentile of what the phase took before.
    pub factor: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { unknown: Duration::from_secs(1800), floor: Duration::from_millis(9500), factor: 5 }
    }
}

/// What the system says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vital {
    /// Somebody stopped it.
    Stopped,
    /// Its main thread computes.
    Computes,
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
    seen: Vec<Option<Beat>>,
}

impl Watchdog {
    pub(crate) fn new(patience: Patience, workers: usize) -> Self {
        Self { patience, durations: vec![VecDeque::new(); WorkerPhase::ALL.len()], seen: vec![None; workers] }
    }

    /// Takes note of what a worker's page says now.
    pub(crate) fn observe(&mut self, worker: usize, beat: Beat) {
        let before = self.seen[worker].replace(beat.clone());
        let Some(before) = before.filter(|before| before.sequence != beat.sequence) else { return };
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
    /// the one that computes; and only if it is overdue itself, for a peer may wait for one that writes a checkpoint.
    pub(crate) fn hang(
        &self,
        now_ns: u64,
        is_running: &dyn Fn(usize) -> bool,
        vital: &dyn Fn(usize) -> Vital,
    ) -> Option<Hang> {
        let running = || {
            let seen = self.seen.iter().enumerate().filter(|(worker, _)| is_running(*worker));
            seen.filter_map(|(worker, beat)| Some((worker, beat.as_ref()?)))
        };
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
            let computes = vital(worker) == Vital::Computes;
            (beat.phase.waits_for_peers(), beat.step, beat.phase, !computes, beat.since_ns)
        };
        let last = running().min_by_key(distance)?;
        let overdue = match self.deadline(last.1.phase) {
            Some(deadline) => silent_for(deadline)(&last),
            // Nobody knows how long this may take; where the others get on, it may be waiting for them.
            None => running().all(|worker| silent_for(self.patience.unknown)(&worker)),
        };
        overdue.then(|| hang(last, false))
    }

    /// How long a phase may take; `None` for one that is not learned, or not yet. One that waits for peers, who may be
    /// on another node with a watchdog of its own, is given twice the time, so that the one that they wait for is
    /// blamed first.
    fn deadline(&self, phase: WorkerPhase) -> Option<Duration> {
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const STEP: [(WorkerPhase, u64); 3] =
        [(WorkerPhase::Data, 10), (WorkerPhase::Compute, 60), (WorkerPhase::Reduce, 30)];

    /// Workers that take their steps together, each with its own milliseconds a phase.
    struct Team {
        beats: Vec<Beat>,
        watchdog: Watchdog,
        now: u64,
    }

    impl Team {
        fn new(workers: usize) -> Self {
            let patience = Patience::default();
            Self { beats: vec![Beat::first(0); workers], watchdog: Watchdog::new(patience, workers), now: 0 }
        }

        fn enter(&mut self, worker: usize, phase: WorkerPhase, step: u64) {
            self.beats[worker].advance(phase, step, self.now);
            self.watchdog.observe(worker, self.beats[worker].clone());
        }

        fn all(&mut self, phase: WorkerPhase, step: u64) {
            (0..self.beats.len()).for_each(|worker| self.enter(worker, phase, step));
        }

        fn steps(&mut self, steps: std::ops::Range<u64>) {
            for step in steps {
                for (phase, took) in STEP {
                    self.all(phase, step);
                    self.now += took * MS;
                }
            }
        }

        fn hang(&self, vital: &dyn Fn(usize) -> Vital) -> Option<Hang> {
            self.watchdog.hang(self.now, &|_| true, vital)
        }
    }

    #[test]
    fn who_hangs_is_named_although_all_are_overdue() {
        for culprit in 0..3 {
            for (phase, _) in STEP.into_iter().take(2) {
                let mut team = Team::new(3);
                team.steps(0..20);
                team.all(WorkerPhase::Data, 20);
                for worker in (0..3).filter(|worker| *worker != culprit) {
                    team.enter(worker, WorkerPhase::Compute, 20);
                }
                if phase == WorkerPhase::Compute {
                    team.enter(culprit, phase, 20);
                }
                team.now += 9_000 * MS;
                assert_eq!(team.hang(&|_| Vital::Waits), None, "not yet");
                team.now += 1_000 * MS;
                let spins = |worker| if worker == culprit { Vital::Computes } else { Vital::Waits };
                let hang = team.hang(&spins).unwrap();
                assert_eq!((hang.worker, hang.phase, hang.step), (culprit, phase, 20));
                assert!(hang.silent <= Duration::from_secs(10) && !hang.stopped);
            }
        }
    }

    #[test]
    fn a_stopped_worker_is_blamed_wherever_it_stands() {
        let mut team = Team::new(2);
        team.steps(0..5);
        team.enter(0, WorkerPhase::Reduce, 5);
        team.enter(1, WorkerPhase::Compute, 5);
        team.now += 10_000 * MS;
        let hang = team.hang(&|worker| if worker == 0 { Vital::Stopped } else { Vital::Waits }).unwrap();
        assert_eq!((hang.worker, hang.phase, hang.stopped), (0, WorkerPhase::Reduce, true));
        assert!(hang.to_string().contains("SIGSTOP"), "{hang}");
    }

    #[test]
    fn who_waits_for_a_checkpoint_of_another_does_not_hang() {
        let mut team = Team::new(2);
        team.steps(0..20);
        team.enter(0, WorkerPhase::Save, 19);
        team.enter(1, WorkerPhase::Data, 20);
        team.enter(1, WorkerPhase::Compute, 20);
        team.now += 600_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None);
        team.now += 1_300_000 * MS;
        let hang = team.hang(&|_| Vital::Waits).unwrap();
        assert_eq!((hang.worker, hang.phase), (0, WorkerPhase::Save));
    }

    #[test]
    fn who_has_computed_its_features_may_wait_for_the_others() {
        let mut team = Team::new(2);
        team.all(WorkerPhase::Features, 0);
        for picture in 1..100 {
            team.enter(0, WorkerPhase::Features, picture);
            team.now += 60_000 * MS;
            assert_eq!(team.hang(&|_| Vital::Waits), None);
        }
    }

    #[test]
    fn what_has_never_been_seen_is_given_time_and_long_phases_too() {
        let mut team = Team::new(2);
        team.all(WorkerPhase::Load, 0);
        team.now += 60_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None, "loading");
        team.all(WorkerPhase::Compute, 0);
        team.now += 60_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None, "the first step compiles");
        for step in 1..4 {
            team.all(WorkerPhase::Compute, step);
            team.now += 8_000 * MS;
        }
        team.now += 25_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None, "steps of 8 s may take 40 s");
        team.now += 10_000 * MS;
        assert!(team.hang(&|_| Vital::Waits).is_some());
    }

    #[test]
    fn another_stage_starts_to_learn_anew() {
        let mut team = Team::new(1);
        team.steps(0..20);
        team.all(WorkerPhase::Load, 0);
        team.now += 10 * MS;
        team.all(WorkerPhase::Compute, 0);
        team.now += 60_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        /// Steps whose phases vary up to fivefold raise no alarm: 20 x 500 steps.
        #[test]
        fn clean_steps_raise_no_alarm(times in prop::collection::vec([1u64..50, 100..500, 1..100], 500)) {
            let mut team = Team::new(2);
            for (step, times) in (0..).zip(times) {
                for ((phase, _), took) in STEP.into_iter().zip(times) {
                    team.all(phase, step);
                    team.now += took * MS;
                    prop_assert_eq!(team.hang(&|_| Vital::Waits), None);
                }
            }
        }
    }
}
