//! Teams whose workers hang, wait or take long, by a clock that the test moves.

use proptest::prelude::*;

use super::*;
use crate::standing::tests::standing;

const MS: u64 = 1_000_000;
const STEP: [(WorkerPhase, u64); 4] = [
    (WorkerPhase::Data, 10),
    (WorkerPhase::Compute, 60),
    (WorkerPhase::Exchange, 5),
    (WorkerPhase::Reduce, 30),
];

/// Workers that take their steps together, each with its own milliseconds a phase.
struct Team {
    beats: Vec<Beat>,
    watchdog: Watchdog,
    now: u64,
}

impl Team {
    fn new(workers: usize) -> Self {
        let patience = Patience::default();
        Self { beats: vec![Beat::first(0); workers], watchdog: Watchdog::new(patience, workers, 0), now: 0 }
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
        self.watchdog.hang(self.now, None, &|_| true, vital)
    }

    /// While another node stands so.
    fn hang_beside(&self, others: Standing) -> Option<Hang> {
        self.watchdog.hang(self.now, Some(others), &|_| true, &|_| Vital::Waits)
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
fn who_computes_is_blamed_by_those_who_wait_for_its_exchange() {
    for culprit in 0..3 {
        let mut team = Team::new(3);
        team.steps(0..20);
        team.all(WorkerPhase::Compute, 20);
        team.now += 5 * MS;
        for worker in (0..3).filter(|worker| *worker != culprit) {
            team.enter(worker, WorkerPhase::Exchange, 20);
        }
        team.now += 10_000 * MS;
        let hang = team.hang(&|_| Vital::Waits).unwrap();
        assert_eq!((hang.worker, hang.phase, hang.step), (culprit, WorkerPhase::Compute, 20));
    }
}

#[test]
fn all_who_wait_in_an_exchange_are_given_time_for_the_one_that_they_wait_for() {
    let mut team = Team::new(2);
    team.steps(0..20);
    team.all(WorkerPhase::Compute, 20);
    team.all(WorkerPhase::Exchange, 20);
    let there = |seconds| standing(WorkerPhase::Exchange, 20, seconds);
    team.now += 15_000 * MS;
    assert_eq!(team.hang_beside(standing(WorkerPhase::Save, 19, 15)), None, "it writes a checkpoint");
    assert_eq!(
        team.hang_beside(standing(WorkerPhase::Compute, 20, 15)),
        None,
        "its own watchdog has the word"
    );
    assert_eq!(team.hang_beside(there(15)), None, "the network is given twice the time");
    team.now += 5_000 * MS;
    assert_eq!(team.hang_beside(there(20)).unwrap().phase, WorkerPhase::Exchange);
}

#[test]
fn who_has_waited_long_does_not_hang_when_the_last_comes() {
    for phase in [WorkerPhase::Exchange, WorkerPhase::Reduce] {
        let mut team = Team::new(2);
        team.steps(0..20);
        team.enter(0, phase, 20);
        team.enter(1, WorkerPhase::Save, 19);
        team.now += 600_000 * MS;
        team.enter(1, phase, 20);
        assert_eq!(team.hang(&|_| Vital::Waits), None, "{phase:?}: averaged now");
        team.now += 15_000 * MS;
        assert_eq!(team.hang(&|_| Vital::Waits), None, "{phase:?}: twice the time");
        team.now += 5_000 * MS;
        assert_eq!(team.hang_beside(standing(phase, 20, 1)), None, "{phase:?}: of another node");
        for hang in [team.hang(&|_| Vital::Waits), team.hang_beside(standing(phase, 20, 20))] {
            let hang = hang.unwrap();
            assert_eq!((hang.worker, hang.phase, hang.silent.as_secs()), (1, phase, 20));
        }
    }
}

#[test]
fn who_gets_no_processor_is_not_blamed() {
    let mut team = Team::new(2);
    team.steps(0..20);
    team.all(WorkerPhase::Compute, 20);
    team.enter(1, WorkerPhase::Reduce, 20);
    team.now += 30_000 * MS;
    let starved = |worker| if worker == 0 { Vital::Starved } else { Vital::Waits };
    assert_eq!(team.hang(&starved), None);
    let spins = |worker| if worker == 0 { Vital::Computes } else { Vital::Waits };
    assert_eq!(team.hang(&spins).unwrap().worker, 0);
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
fn ranks_that_wait_for_a_slower_rank_of_another_node_do_not_hang() {
    let mut team = Team::new(2);
    team.steps(0..20);
    team.all(WorkerPhase::Compute, 20);
    team.enter(0, WorkerPhase::Reduce, 20);
    team.now += 600_000 * MS;
    for (phase, step) in [(WorkerPhase::Save, 19), (WorkerPhase::Validate, 19), (WorkerPhase::Data, 20)] {
        assert_eq!(team.hang_beside(standing(phase, step, 600)), None, "{phase:?} of step {step}");
    }
    // Its ranks have come as far or further: the one that holds up all is here.
    for (phase, step) in [(WorkerPhase::Compute, 20), (WorkerPhase::Reduce, 20)] {
        let hang = team.hang_beside(standing(phase, step, 600)).unwrap();
        assert_eq!((hang.worker, hang.phase), (1, WorkerPhase::Compute), "{phase:?} of step {step}");
    }
}

#[test]
fn a_node_that_has_loaded_waits_for_one_that_gets_on() {
    let mut team = Team::new(2);
    team.all(WorkerPhase::Load, 0);
    team.now += 7_200_000 * MS;
    assert_eq!(team.hang_beside(standing(WorkerPhase::Features, 9, 1)), None);
    assert!(team.hang_beside(standing(WorkerPhase::Features, 9, 2000)).is_some());
    team.enter(1, WorkerPhase::Load, 1);
    let own = team.watchdog.standing(team.now, &|_| true).unwrap();
    assert_eq!(own, standing(WorkerPhase::Load, 0, 0), "the least far, and as silent as the least silent");
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
fn who_does_not_come_to_the_meeting_is_blamed_and_not_who_waits_there() {
    let mut team = Team::new(3);
    team.now += 1_000 * MS;
    team.enter(0, WorkerPhase::Meet, 0);
    team.enter(2, WorkerPhase::Meet, 0);
    team.now += 238_000 * MS;
    assert_eq!(team.hang(&|_| Vital::Waits), None);
    team.now += 2_000 * MS;
    let hang = team.hang(&|_| Vital::Waits).unwrap();
    assert_eq!((hang.worker, hang.phase), (1, WorkerPhase::Start));
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
    fn clean_steps_raise_no_alarm(times in prop::collection::vec([1u64..50, 100..500, 1..20, 1..100], 500)) {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    /// A machine that has been up for a second or for years: only differences of its clock count.
    #[test]
    fn t5_a_verdict_does_not_depend_on_what_the_clock_says(up in 0u64..1 << 60, silent in 0u64..25_000) {
        let verdict = |up: u64| {
            let mut team = Team::new(2);
            team.now = up;
            team.all(WorkerPhase::Load, 0);
            team.steps(0..20);
            team.all(WorkerPhase::Compute, 20);
            team.now += silent * MS;
            team.hang(&|_| Vital::Waits)
        };
        prop_assert_eq!(verdict(up), verdict(0));
    }
}
