//! What the launcher does next. No clock, no process and no file in here.

use std::time::Duration;

use crate::Exit;
use crate::watchdog::Hang;

/// How one process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// The end of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub rank: usize,
    pub end: End,
    /// Since the launcher started, by its monotonic clock.
    pub at: Duration,
}

/// What is known of the workers of one generation.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub nproc: usize,
    /// Its number.
    pub generation: u32,
    pub ended: Vec<Ended>,
    /// When the launcher told the rest to end because one had failed.
    pub told_to_end: Option<Duration>,
    /// The signal by which somebody asked the launcher for a stop.
    pub stop: Option<i32>,
    /// The worker that the launcher killed because it hung.
    pub hang: Option<Hang>,
    /// Whether workers go on where one dies.
    pub bond: Bond,
    /// A worker that has not ended is about to.
    pub dying: bool,
}

/// How the workers of a generation stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bond {
    /// They have not all met yet, or end where one of them ends.
    Loose,
    /// They have met, and outlive the loss of one.
    Met,
    /// Those that lived when one died were called to meet again, and have not all come yet.
    Called,
    /// No restart is left for another meeting.
    Spent,
}

/// Bounds that do not change during a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Wait after a first failure, so that the one that pulled it down can be told apart from it.
    pub settle: Duration,
    /// From SIGTERM to SIGKILL: enough to finish a checkpoint being written. A worker inside a collective never
    /// hears SIGTERM, so this is also how long it sits there.
    pub grace: Duration,
    /// The same where no worker can have work worth finishing.
    pub short_grace: Duration,
    /// Wait after a first failure that others outlive: enough for those that die with it.
    pub together: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(100),
            grace: Duration::from_secs(5),
            short_grace: Duration::from_secs(1),
            together: Duration::from_millis(10),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Wait,
    /// The dead are started again and those that live called to meet them, if the budget allows it.
    Regroup,
    /// SIGTERM to all that run.
    Terminate,
    /// SIGKILL to all that run.
    Kill,
    /// All have ended: form the set again, if the budget allows it.
    Restart,
    /// All have ended for good.
    Exit(Exit),
}

/// The next action, from the state of the workers and the time since the launcher started.
pub(crate) fn decide(now: Duration, fleet: &Fleet, policy: &Policy) -> Action {
    let running = fleet.ended.len() < fleet.nproc;
    match (fleet.cause(), fleet.told_to_end) {
        (None, None) if running => Action::Wait,
        // Another node's worker failed.
        (None, Some(told)) if running => match now.saturating_sub(told) < policy.grace {
            true => Action::Wait,
            false => Action::Kill,
        },
        (None, _) => Action::Exit(fleet.clean_exit()),
        (Some(cause), None) if running && fleet.can_regroup(cause) => match now.saturating_sub(cause.at) {
            since if since < policy.together || (fleet.dying && since < policy.grace) => Action::Wait,
            _ => Action::Regroup,
        },
        (Some(cause), None) if running => match now.saturating_sub(cause.at) < policy.settle {
            true => Action::Wait,
            false => Action::Terminate,
        },
        (Some(cause), Some(told)) if running => {
            match now.saturating_sub(told) < grace(fleet, cause, policy) {
                true => Action::Wait,
                false => Action::Kill,
            }
        }
        (Some(cause), _) => fleet.verdict(cause),
    }
}

fn grace(fleet: &Fleet, cause: &Ended, policy: &Policy) -> Duration {
    match fleet.exit(cause) {
        // Some sit in the rendezvous, where they hear nothing. What they had on the way to the disk was finished first.
        _ if fleet.bond == Bond::Called => policy.short_grace,
        // `Stopped`: killed by the signal before its handlers stood, so before the workers met. The others wait for it
        // in the rendezvous and have done nothing yet.
        Exit::Config | Exit::Busy | Exit::Stopped => policy.short_grace,
        Exit::Done | Exit::Unavailable | Exit::GiveUp => policy.grace,
    }
}

impl Fleet {
    pub(crate) fn new(nproc: usize, generation: u32, stop: Option<i32>) -> Self {
        Self {
            nproc,
            generation,
            ended: Vec::new(),
            told_to_end: None,
            stop,
            hang: None,
            bond: Bond::Loose,
            dying: false,
        }
    }

    /// The others outlive this end, and none of them has left for another reason.
    fn can_regroup(&self, cause: &Ended) -> bool {
        let accident = |ended: &Ended| self.exit(ended) == Exit::Unavailable;
        self.bond == Bond::Met && self.stop.is_none() && accident(cause) && self.ended.iter().all(accident)
    }

    /// The worker whose end means that the others cannot go on; `None` while all is well.
    ///
    /// The first to fail, except that one that only reports a lost peer (69) gives way to the peer: both ends can
    /// reach the launcher within the same millisecond. Ends after the launcher's own SIGTERM are its doing.
    pub(crate) fn cause(&self) -> Option<&Ended> {
        self.ended
            .iter()
            .filter(|ended| self.told_to_end.is_none_or(|told| ended.at <= told))
            .filter(|ended| !matches!(ended.end, End::Code(0 | 75)))
            .min_by_key(|ended| (ended.end == End::Code(69), ended.at))
    }

    /// What a worker's end means in the contract. A code outside it (a panic's 101) and a signal are accidents, which
    /// another try may not meet. Killed by the very signal that was handed on, a worker had not yet installed its
    /// handlers: nothing of this launch is lost.
    pub(crate) fn exit(&self, ended: &Ended) -> Exit {
        match ended.end {
            End::Code(code) => Exit::from_code(code).unwrap_or(Exit::Unavailable),
            End::Signal(signal) if self.stop == Some(signal) => Exit::Stopped,
            End::Signal(_) => Exit::Unavailable,
        }
    }

    /// All workers ended with 0 or 75.
    fn clean_exit(&self) -> Exit {
        match self.any_stopped() {
            true => Exit::Stopped,
            false => Exit::Done,
        }
    }

    fn verdict(&self, cause: &Ended) -> Action {
        match self.exit(cause) {
            // A peer that left with its checkpoint first pulls the rest out of their collective, whoever asked it to.
            Exit::Unavailable if self.any_stopped() => Action::Exit(Exit::Stopped),
            Exit::Unavailable if self.stop.is_none() => Action::Restart,
            exit => Action::Exit(exit),
        }
    }

    fn any_stopped(&self) -> bool {
        self.ended.iter().any(|ended| ended.end == End::Code(75))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        settle: Duration::from_millis(100),
        grace: Duration::from_secs(5),
        short_grace: Duration::from_secs(1),
        together: Duration::from_millis(20),
    };
    const SIGTERM: i32 = 15;
    const SIGKILL: i32 = 9;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A fleet of two whose workers ended as `(rank, end, milliseconds)` say.
    fn pair(ended: &[(usize, End, u64)]) -> Fleet {
        let ended = ended.iter().map(|&(rank, end, at)| Ended { rank, end, at: ms(at) }).collect();
        Fleet { ended, ..Fleet::new(2, 0, None) }
    }

    #[test]
    fn waits_while_all_is_well_and_exits_when_all_are_done() {
        assert_eq!(decide(ms(50), &pair(&[]), &POLICY), Action::Wait);
        let one_done = pair(&[(1, End::Code(0), 10)]);
        assert_eq!(decide(Duration::from_secs(86_400), &one_done, &POLICY), Action::Wait);
        let both_done = pair(&[(1, End::Code(0), 10), (0, End::Code(0), 20)]);
        assert_eq!(decide(ms(21), &both_done, &POLICY), Action::Exit(Exit::Done));
        let stopped = pair(&[(1, End::Code(75), 10), (0, End::Code(75), 20)]);
        assert_eq!(decide(ms(21), &stopped, &POLICY), Action::Exit(Exit::Stopped));
    }

    #[test]
    fn a_failure_ends_the_rest_after_settling_then_with_grace_then_by_force() {
        let mut fleet = pair(&[(1, End::Signal(SIGKILL), 1000)]);
        assert_eq!(decide(ms(1099), &fleet, &POLICY), Action::Wait);
        assert_eq!(decide(ms(1100), &fleet, &POLICY), Action::Terminate);
        fleet.told_to_end = Some(ms(1100));
        assert_eq!(decide(ms(6099), &fleet, &POLICY), Action::Wait);
        assert_eq!(decide(ms(6100), &fleet, &POLICY), Action::Kill);
        fleet.ended.push(Ended { rank: 0, end: End::Signal(SIGKILL), at: ms(6101) });
        assert_eq!(decide(ms(6102), &fleet, &POLICY), Action::Restart);
        assert_eq!(fleet.cause().unwrap().rank, 1);
    }

    #[test]
    fn codes_that_a_retry_cannot_mend_are_passed_on_without_one() {
        for (code, exit) in [(73, Exit::Busy), (78, Exit::Config), (93, Exit::GiveUp)] {
            let fleet = pair(&[(0, End::Code(code), 10), (1, End::Code(69), 11)]);
            assert_eq!(decide(ms(200), &fleet, &POLICY), Action::Exit(exit));
        }
        for code in [1, 2, 69, 101] {
            let fleet = pair(&[(0, End::Code(code), 10), (1, End::Code(0), 11)]);
            assert_eq!(decide(ms(200), &fleet, &POLICY), Action::Restart);
        }
    }

    #[test]
    fn workers_told_to_end_for_another_node_are_not_waited_for_for_ever() {
        let told = Fleet { told_to_end: Some(ms(1000)), ..pair(&[(0, End::Code(69), 1200)]) };
        assert_eq!(decide(ms(5999), &told, &POLICY), Action::Wait);
        assert_eq!(decide(ms(6000), &told, &POLICY), Action::Kill);
        assert!(told.cause().is_none());
    }

    #[test]
    fn a_wrong_config_leaves_the_others_little_time() {
        let mut fleet = pair(&[(0, End::Code(78), 0)]);
        fleet.told_to_end = Some(ms(100));
        assert_eq!(decide(ms(1100), &fleet, &POLICY), Action::Kill);
    }

    #[test]
    fn workers_that_wait_for_one_stopped_before_they_met_are_given_little_time() {
        let mut fleet = pair(&[(1, End::Signal(SIGTERM), 0)]);
        (fleet.stop, fleet.told_to_end) = (Some(SIGTERM), Some(ms(100)));
        assert_eq!(decide(ms(1099), &fleet, &POLICY), Action::Wait);
        assert_eq!(decide(ms(1100), &fleet, &POLICY), Action::Kill);
        fleet.ended.push(Ended { rank: 0, end: End::Signal(SIGKILL), at: ms(1101) });
        assert_eq!(decide(ms(1102), &fleet, &POLICY), Action::Exit(Exit::Stopped));
    }

    #[test]
    fn the_lost_peer_is_the_cause_and_not_the_one_that_reports_it() {
        let fleet = pair(&[(0, End::Code(69), 1000), (1, End::Signal(SIGKILL), 1001)]);
        assert_eq!(fleet.cause().unwrap().rank, 1);
        let mut told = pair(&[(0, End::Code(69), 1000), (1, End::Signal(SIGTERM), 1101)]);
        told.told_to_end = Some(ms(1100));
        assert_eq!(told.cause().unwrap().rank, 0);
    }

    #[test]
    fn a_requested_stop_never_restarts() {
        let stopped = |ended: &[(usize, End, u64)]| Fleet { stop: Some(SIGTERM), ..pair(ended) };
        let before_handlers = stopped(&[(0, End::Signal(SIGTERM), 10), (1, End::Signal(SIGTERM), 11)]);
        assert_eq!(decide(ms(200), &before_handlers, &POLICY), Action::Exit(Exit::Stopped));
        let left_first = stopped(&[(0, End::Code(75), 10), (1, End::Code(69), 11)]);
        assert_eq!(decide(ms(200), &left_first, &POLICY), Action::Exit(Exit::Stopped));
        let killed = stopped(&[(0, End::Signal(SIGKILL), 10), (1, End::Code(69), 11)]);
        assert_eq!(decide(ms(200), &killed, &POLICY), Action::Exit(Exit::Unavailable));
        // The signal went to one worker alone, in work that ranks do each for themselves.
        let one_asked = pair(&[(0, End::Code(75), 10), (1, End::Code(69), 11)]);
        assert_eq!(decide(ms(200), &one_asked, &POLICY), Action::Exit(Exit::Stopped));
        let patient = stopped(&[(0, End::Code(75), 10)]);
        assert_eq!(decide(Duration::from_secs(600), &patient, &POLICY), Action::Wait);
    }

    /// As [`pair`], of workers that outlive each other.
    fn bound(bond: Bond, ended: &[(usize, End, u64)]) -> Fleet {
        Fleet { bond, ..pair(ended) }
    }

    #[test]
    fn who_outlives_a_peer_is_called_and_not_ended() {
        for end in [End::Signal(SIGKILL), End::Code(69), End::Code(101)] {
            let fleet = bound(Bond::Met, &[(1, end, 1000)]);
            assert_eq!(decide(ms(1019), &fleet, &POLICY), Action::Wait, "another may die with it");
            assert_eq!(decide(ms(1020), &fleet, &POLICY), Action::Regroup);
            let dying = Fleet { dying: true, ..fleet };
            assert_eq!(decide(ms(5999), &dying, &POLICY), Action::Wait, "it takes its time to die");
        }
        let all = bound(Bond::Met, &[(1, End::Signal(SIGKILL), 1000), (0, End::Signal(SIGKILL), 1001)]);
        assert_eq!(decide(ms(1002), &all, &POLICY), Action::Restart, "nobody is left");
    }

    #[test]
    fn nobody_is_called_where_another_try_is_not_wanted_or_cannot_be() {
        let dead = (1, End::Signal(SIGKILL), 1000);
        for bond in [Bond::Loose, Bond::Called, Bond::Spent] {
            assert_eq!(decide(ms(1100), &bound(bond, &[dead]), &POLICY), Action::Terminate, "{bond:?}");
        }
        let stopped = Fleet { stop: Some(SIGTERM), ..bound(Bond::Met, &[dead]) };
        assert_eq!(decide(ms(1100), &stopped, &POLICY), Action::Terminate);
        let wrong = bound(Bond::Met, &[(1, End::Code(78), 1000)]);
        assert_eq!(decide(ms(1100), &wrong, &POLICY), Action::Terminate);
        let mut three = bound(Bond::Met, &[dead, (0, End::Code(0), 900)]);
        three.nproc = 3;
        assert_eq!(decide(ms(1100), &three, &POLICY), Action::Terminate, "one is done and will not come");
    }

    #[test]
    fn who_waits_in_a_meeting_that_cannot_be_is_given_little_time() {
        let mut fleet = bound(Bond::Called, &[(1, End::Signal(SIGKILL), 1000)]);
        fleet.told_to_end = Some(ms(1100));
        assert_eq!(decide(ms(2099), &fleet, &POLICY), Action::Wait);
        assert_eq!(decide(ms(2100), &fleet, &POLICY), Action::Kill);
    }
}
