//! Which worker holds up the others. No page and no clock in here.

use crate::progress::{Beat, WorkerPhase};

/// Steps and time of one window.
const WINDOW_STEPS: u64 = 20;
const WINDOW_NS: u64 = 3_000_000_000;
/// Part of the window that the others must lose by waiting.
const LOST_SHARE: f64 = 0.2;

/// A worker for which the others wait.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Straggler {
    pub worker: usize,
    /// Part of the time in which all others waited for it, beyond that in which all waited for another one.
    pub lost_share: f64,
}

/// Counts in how many looks all workers but one wait for that one.
///
/// How long each one waits would not tell: one that is stopped or starved in the midst of an exchange looks like one that
/// waits, but others have left that exchange behind.
#[derive(Debug, Default)]
pub(crate) struct Stragglers {
    /// Where the window began: all workers had left the same meetings behind.
    began: Vec<Beat>,
    /// By worker: looks of this window in which all others waited for it.
    awaited: Vec<u64>,
    looks: u64,
    suspect: Option<usize>,
    flagged: Option<usize>,
}

impl Stragglers {
    /// Looks at the beats of all workers; a straggler is named once, after two windows in a row. Which of them somebody has
    /// `stopped` is asked where all wait.
    pub(crate) fn observe(&mut self, beats: Vec<Beat>, stopped: &dyn Fn(usize) -> bool) -> Option<Straggler> {
        let training = beats.len() > 1 && beats.iter().all(|beat| steps(beat) > 0);
        if !training {
            return None;
        }
        if self.began.len() != beats.len() {
            self.begin(beats);
            return None;
        }
        self.looks += 1;
        if let Some(worker) = awaited(&self.began, &beats, stopped) {
            self.awaited[worker] += 1;
        }
        let is_short = |(now, then): (&Beat, &Beat)| {
            steps(now).saturating_sub(steps(then)) < WINDOW_STEPS
                || now.since_ns.saturating_sub(then.since_ns) < WINDOW_NS
        };
        if beats.iter().zip(&self.began).any(is_short) {
            return None;
        }
        let shares: Vec<f64> = self.awaited.iter().map(|&looks| looks as f64 / self.looks as f64).collect();
        self.begin(beats);
        self.judge(&shares)
    }

    /// Begins a window where it is known that all stand between the same meetings, else leaves it to a later look.
    fn begin(&mut self, beats: Vec<Beat>) {
        let meets = |phase| matches!(phase, WorkerPhase::Compute | WorkerPhase::Exchange);
        let (step, phase) = (beats[0].step, beats[0].phase);
        let alike = !meets(phase) && beats.iter().all(|beat| (beat.step, beat.phase) == (step, phase));
        (self.awaited, self.looks) = (vec![0; beats.len()], 0);
        self.began = if alike { beats } else { Vec::new() };
    }

    fn judge(&mut self, shares: &[f64]) -> Option<Straggler> {
        let (worker, most) = shares.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let others = shares.iter().enumerate().filter(|(other, _)| *other != worker).map(|(_, share)| *share);
        let lost_share = most - others.fold(0.0, f64::max);
        let suspect = (lost_share > LOST_SHARE).then_some(worker);
        let confirmed = suspect.is_some() && suspect == self.suspect && suspect != self.flagged;
        self.suspect = suspect;
        self.flagged = if confirmed { suspect } else { self.flagged.filter(|_| suspect == self.flagged) };
        confirmed.then_some(Straggler { worker, lost_share })
    }
}

/// Steps that a worker has taken.
fn steps(beat: &Beat) -> u64 {
    beat.visits(WorkerPhase::Reduce).count
}

/// The one worker for which all others wait: since all `began` alike they have left more meetings behind, or stand in the
/// one that it has not come to, or in which it was stopped. All workers go through the same meetings.
fn awaited(began: &[Beat], beats: &[Beat], stopped: &dyn Fn(usize) -> bool) -> Option<usize> {
    let left = |beat: &Beat| steps(beat) + beat.visits(WorkerPhase::Exchange).count;
    let place =
        |(then, now): (&Beat, &Beat)| (left(now).saturating_sub(left(then)), now.phase.waits_for_peers());
    let places: Vec<(u64, bool)> = began.iter().zip(beats).map(place).collect();
    let (worker, last) = places.iter().enumerate().min_by_key(|(_, place)| **place)?;
    let waits_for_it = |(other, place): (usize, &(u64, bool))| other == worker || (place.1 && place > last);
    if places.iter().enumerate().all(waits_for_it) {
        return Some(worker);
    }
    let all_wait = places.iter().all(|(_, waits)| *waits);
    let mut stopped = (0..places.len()).filter(|worker| all_wait && stopped(*worker));
    stopped.next().filter(|_| stopped.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// 200 steps whose workers meet half way and at the end, each after the milliseconds that `takes` says; looked at each
    /// 5 ms.
    fn watched(workers: usize, takes: &dyn Fn(u64, usize) -> u64) -> Vec<usize> {
        let mut beats = vec![Beat::first(0); workers];
        let (mut stragglers, mut found, mut now) = (Stragglers::default(), Vec::new(), 0);
        for half in 0..400u64 {
            let meets = [WorkerPhase::Exchange, WorkerPhase::Reduce][(half % 2) as usize];
            beats.iter_mut().for_each(|beat| beat.advance(WorkerPhase::Compute, half / 2, now * MS));
            let takes: Vec<u64> = (0..workers).map(|worker| takes(half, worker)).collect();
            for _ in 0..takes.iter().max().unwrap() + 2 {
                for (beat, takes) in beats.iter_mut().zip(&takes) {
                    if beat.phase == WorkerPhase::Compute && beat.since_ns + takes * MS == now * MS {
                        beat.advance(meets, half / 2, now * MS);
                    }
                }
                now += 1;
                if now.is_multiple_of(5) {
                    found.extend(stragglers.observe(beats.clone(), &|_| false).map(|slow| slow.worker));
                }
            }
        }
        found
    }

    #[test]
    fn the_one_for_whom_the_others_wait_is_named_once() {
        for slow in 0..3 {
            assert_eq!(watched(3, &|_, worker| if worker == slow { 50 } else { 25 }), [slow]);
        }
    }

    #[test]
    fn waiting_in_the_midst_of_a_step_counts() {
        let takes = |half: u64, worker: usize| if worker == 1 && half.is_multiple_of(2) { 60 } else { 20 };
        assert_eq!(watched(2, &takes), [1]);
    }

    #[test]
    fn equals_that_vary_are_no_stragglers() {
        assert_eq!(watched(3, &|half, worker| 25 + (half * 7 + worker as u64 * 13) % 10), [0; 0]);
        // Each holds up the other by turns, for as long as one that is slow.
        assert_eq!(watched(2, &|half, worker| if half / 2 % 2 == worker as u64 { 50 } else { 25 }), [0; 0]);
    }

    #[test]
    fn one_that_is_held_in_an_exchange_is_awaited_by_those_who_have_left_it() {
        // The process of one is younger, so that it has fewer visits on its page.
        let mut began = vec![Beat::first(0); 3];
        began[0].advance(WorkerPhase::Exchange, 0, 0);
        began.iter_mut().for_each(|beat| beat.advance(WorkerPhase::Data, 0, 0));
        let mut beats = began.clone();
        beats.iter_mut().for_each(|beat| beat.advance(WorkerPhase::Exchange, 0, 0));
        let found = |beats: &[Beat], stopped: &[usize]| awaited(&began, beats, &|one| stopped.contains(&one));
        assert_eq!(found(&beats, &[]), None, "all wait for each other");
        assert_eq!(found(&beats, &[1]), Some(1), "it was stopped there");
        assert_eq!(found(&beats, &[0, 1]), None, "nobody alone holds up the others");
        for other in [0, 2] {
            beats[other].advance(WorkerPhase::Compute, 0, MS);
            assert_eq!(found(&beats, &[1]), None, "somebody computes");
        }
        [0, 2].into_iter().for_each(|other| beats[other].advance(WorkerPhase::Exchange, 0, 2 * MS));
        assert_eq!(found(&beats, &[]), Some(1));
    }
}
