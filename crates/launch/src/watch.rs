//! What the launcher sees on the progress pages of its workers, told as lines or as a hang.

use std::time::Duration;

use crate::decide::Fleet;
use crate::fleet::Processes;
use crate::progress::{Beat, WorkerPhase, monotonic_ns};
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
    /// A worker that has said nothing for so long and gets no processor is worth a line.
    floor: Duration,
    /// The last word of each worker.
    words: Vec<Word>,
    /// It was said that a worker gets no processor.
    told_starved: bool,
    /// How far the other nodes have come, as they last said.
    pub others: Option<Standing>,
}

/// When a worker last said something, and how long it had queued for a processor by then.
#[derive(Debug, Clone, Copy, Default)]
struct Word {
    sequence: u64,
    since_ns: u64,
    queued: Duration,
}

impl Word {
    fn of(beat: &Beat, queued: Duration) -> Self {
        Self { sequence: beat.sequence, since_ns: beat.since_ns, queued }
    }

    fn silent(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.since_ns))
    }

    /// In four fifths of the time since then other programs had the processors: it had no chance to get on. Two programs that
    /// share a processor have half of it each.
    fn is_starved(&self, now_ns: u64, queued: Duration) -> bool {
        queued.saturating_sub(self.queued) * 5 > self.silent(now_ns) * 4
    }
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
            floor: patience.floor,
            words: vec![Word::default(); workers],
            told_starved: false,
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
        let beats: Vec<_> =
            (0..fleet.nproc).filter_map(|worker| Some((worker, processes.beat(worker)?))).collect();
        for (worker, beat) in &beats {
            self.watchdog.observe(*worker, beat.clone());
            if self.words[*worker].sequence != beat.sequence {
                self.words[*worker] = Word::of(beat, processes.queued(*worker));
            }
        }
        let mut sights: Vec<Sight> = self.going_on(&beats).map(Sight::Line).into_iter().collect();
        if fleet.cause().is_some() || fleet.told_to_end.is_some() {
            return sights;
        }
        let (now_ns, words) = (monotonic_ns(), self.words.clone());
        let running = |worker| processes.is_running(worker);
        let vital = |worker: usize| match processes.vital(worker) {
            Vital::Computes if words[worker].is_starved(now_ns, processes.queued(worker)) => Vital::Starved,
            vital => vital,
        };
        if fleet.hang.is_none()
            && let Some(hang) = self.watchdog.hang(now_ns, self.others, &running, &vital)
        {
            sights.push(Sight::Hang(hang));
        }
        sights.extend(self.starved(now_ns, &vital).map(Sight::Line));
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

    /// Told once after a failure: the first step that one of those has taken who were started after it.
    fn going_on(&mut self, beats: &[(usize, Beat)]) -> Option<String> {
        let mut started = beats.iter().filter(|(worker, _)| self.started.contains(worker));
        let (_, beat) = started.find(|(_, beat)| beat.visits(WorkerPhase::Reduce).count > 0)?;
        self.goes_on = true;
        let seconds = beat.since_ns.saturating_sub(self.failed_ns.take()?) as f64 * 1e-9;
        Some(format!("going on: step {} done {seconds:.2} s after the failure", beat.step))
    }

    /// Told once: a worker that would be taken for hung if other programs did not have its processors.
    fn starved(&mut self, now_ns: u64, vital: &dyn Fn(usize) -> Vital) -> Option<String> {
        if self.told_starved {
            return None;
        }
        let silent = |worker: usize| self.words[worker].silent(now_ns);
        let worker = (0..self.words.len())
            .find(|&worker| silent(worker) > self.floor && vital(worker) == Vital::Starved)?;
        self.told_starved = true;
        let (rank, silent) = (self.first_rank + worker, silent(worker).as_secs_f64());
        Some(format!(
            "rank {rank} makes no progress for {silent:.0} s because other programs have this machine's processors"
        ))
    }

    /// How far this node has come.
    pub(crate) fn standing(&self, processes: &Processes) -> Option<Standing> {
        self.watchdog.standing(monotonic_ns(), &|worker| processes.is_running(worker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_queues_for_a_processor_most_of_the_time_is_starved_and_one_that_shares_it_is_not() {
        let second = Duration::from_secs(1);
        let word = Word::of(&Beat::first(1_000_000_000), 3 * second);
        let after_ten_seconds = 11_000_000_000;
        assert!(word.is_starved(after_ten_seconds, 12 * second), "9 of 10 seconds");
        assert!(!word.is_starved(after_ten_seconds, 8 * second), "5 of 10 seconds");
        assert!(!Word::default().is_starved(after_ten_seconds, Duration::ZERO), "never said a word");
    }
}
