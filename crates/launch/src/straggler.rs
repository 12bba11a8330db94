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
    /// Part of the time that the one who waits least of the others lost by waiting, beyond what the straggler waited.
    pub lost_share: f64,
}

/// Compares how long workers wait for each other: who never waits is whom the others wait for.
#[derive(Debug, Default)]
pub(crate) struct Stragglers {
    began: Vec<Beat>,
    suspect: Option<usize>,
    flagged: Option<usize>,
}

impl Stragglers {
    /// Looks at the beats of all workers; a straggler is named once, after two windows in a row.
    pub(crate) fn observe(&mut self, beats: Vec<Beat>) -> Option<Straggler> {
        let training = beats.len() > 1 && beats.iter().all(|beat| beat.visits(WorkerPhase::Reduce).count > 0);
        if !training {
            return None;
        }
        if self.began.len() != beats.len() {
            self.began = beats;
            return None;
        }
        let passed = |later: &Beat, earlier: &Beat| {
            let steps = |beat: &Beat| beat.visits(WorkerPhase::Reduce).count;
            (
                steps(later).saturating_sub(steps(earlier)),
                later.since_ns - earlier.since_ns,
                waited(later).saturating_sub(waited(earlier)),
            )
        };
        let windows: Vec<_> = beats.iter().zip(&self.began).map(|(now, then)| passed(now, then)).collect();
        if windows.iter().any(|&(steps, ns, _)| steps < WINDOW_STEPS || ns < WINDOW_NS) {
            return None;
        }
        self.began = beats;
        let shares: Vec<f64> = windows.iter().map(|&(_, ns, waited)| waited as f64 / ns as f64).collect();
        self.judge(&shares)
    }

    fn judge(&mut self, shares: &[f64]) -> Option<Straggler> {
        let (worker, least) = shares.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let others = shares.iter().enumerate().filter(|(other, _)| *other != worker).map(|(_, share)| *share);
        let lost_share = others.fold(1.0, f64::min) - least;
        let suspect = (lost_share > LOST_SHARE).then_some(worker);
        let confirmed = suspect.is_some() && suspect == self.suspect && suspect != self.flagged;
        self.suspect = suspect;
        self.flagged = if confirmed { suspect } else { self.flagged.filter(|_| suspect == self.flagged) };
        confirmed.then_some(Straggler { worker, lost_share })
    }
}

/// Nanoseconds that a worker spent waiting for others while it trained.
fn waited(beat: &Beat) -> u64 {
    [WorkerPhase::Exchange, WorkerPhase::Reduce].map(|phase| beat.visits(phase).total_ns).iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// 200 steps in which `slow` computes for 100 ms and the others for 50. They wait for each other twice: half way, and
    /// where gradients are averaged.
    fn windows(slow: Option<usize>, jitter: &dyn Fn(u64, usize) -> u64) -> Vec<Straggler> {
        let mut beats = vec![Beat::first(0); 3];
        let (mut stragglers, mut found, mut now) = (Stragglers::default(), Vec::new(), 0);
        for step in 0..200u64 {
            let took = |worker| if Some(worker) == slow { 100 } else { 50 + jitter(step, worker) };
            for phase in [WorkerPhase::Exchange, WorkerPhase::Reduce] {
                for (worker, beat) in beats.iter_mut().enumerate() {
                    beat.advance(WorkerPhase::Compute, step, now);
                    beat.advance(phase, step, now + took(worker) * MS / 2);
                }
                now += (0..3).map(took).max().unwrap() * MS / 2 + 2 * MS;
            }
            found.extend(stragglers.observe(beats.clone()));
        }
        found
    }

    #[test]
    fn the_one_for_whom_the_others_wait_is_named_once() {
        for slow in 0..3 {
            let found = windows(Some(slow), &|_, _| 0);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].worker, slow);
        }
    }

    /// Alike slow in both halves, and all wait in exchanges alone: gradients find everybody ready.
    #[test]
    fn waiting_in_the_midst_of_a_step_counts() {
        let (mut beats, mut stragglers, mut found) = (vec![Beat::first(0); 2], Stragglers::default(), vec![]);
        for step in 0..200u64 {
            let now = step * 100 * MS;
            for (beat, computes) in beats.iter_mut().zip([20, 90]) {
                beat.advance(WorkerPhase::Compute, step, now);
                beat.advance(WorkerPhase::Exchange, step, now + computes * MS);
                beat.advance(WorkerPhase::Reduce, step, now + 98 * MS);
            }
            found.extend(stragglers.observe(beats.clone()));
        }
        assert_eq!(found.iter().map(|slow| slow.worker).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn equals_that_vary_are_no_stragglers() {
        assert_eq!(windows(None, &|step, worker| (step * 7 + worker as u64 * 13) % 10), vec![]);
    }
}
