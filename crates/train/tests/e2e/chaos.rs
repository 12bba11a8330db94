//! Faults at random moments: the run recovers, and not a bit of it tells.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::common::{Chaos, Launch, Scenario, TinyWorld};
use monitor::Phase;
use nix::sys::signal::{Signal, kill};

#[test]
fn random_faults_are_overcome_exactly() {
    let mut chaos = Chaos::new(1);
    overcome(&mut chaos, &[(Scenario::P1, 4), (Scenario::P3, 2), (Scenario::P4, 1), (Scenario::P5, 5)]);
}

#[test]
fn ranks_that_outlive_each_other_overcome_random_deaths_exactly() {
    overcome(&mut Chaos::regrouping(4), &[(Scenario::P1, 4), (Scenario::P2, 2), (Scenario::P4, 1)]);
}

#[test]
fn long_ranks_that_outlive_each_other_overcome_random_deaths_exactly() {
    let scenarios = [(Scenario::P1, 50), (Scenario::P2, 20), (Scenario::P5, 6), (Scenario::P10, 20)];
    overcome(&mut Chaos::regrouping(5), &scenarios);
}

#[test]
fn long_p2_ranks_that_die_together_are_overcome_exactly() {
    overcome(&mut Chaos::new(3), &[(Scenario::P2, 20)]);
}

#[test]
fn long_p4_a_stopped_rank_is_named_with_its_phase_within_ten_seconds() {
    overcome(&mut Chaos::new(6), &[(Scenario::P4, 20)]);
}

#[test]
fn long_p1_p3_random_deaths_are_overcome_exactly() {
    overcome(&mut Chaos::new(8), &[(Scenario::P1, 50), (Scenario::P3, 20)]);
}

#[test]
fn p10_a_rank_that_dies_before_its_update_is_overcome_exactly() {
    overcome(&mut Chaos::new(10), &[(Scenario::P10, 2)]);
}

#[test]
fn long_p10_a_rank_that_dies_before_its_update_is_overcome_exactly() {
    overcome(&mut Chaos::new(11), &[(Scenario::P10, 20)]);
}

fn overcome(chaos: &mut Chaos, scenarios: &[(Scenario, usize)]) {
    for &(scenario, trials) in scenarios {
        for trial in 0..trials {
            let trial = (trial, chaos.trial(scenario));
            assert!(trial.1.recovered && trial.1.exact, "{scenario:?}: {trial:?}");
        }
    }
}

#[test]
fn t7_a_rank_that_gets_half_of_the_time_is_named_in_stage_1() {
    named_alone(Phase::Stage1, 2);
}

#[test]
fn t7_a_rank_that_gets_half_of_the_time_is_named_in_stage_2() {
    named_alone(Phase::Stage2, 0);
}

#[test]
fn long_t7_a_rank_that_gets_half_of_the_time_is_named() {
    for slow in 0..3 {
        named_alone(Phase::Stage1, slow);
        named_alone(Phase::Stage2, slow);
    }
}

/// Stops a rank for half of the time, each tenth of a second, until somebody says that a rank is slow.
fn named_alone(phase: Phase, slow: usize) {
    let sets: &[&str] = match phase {
        Phase::Stage2 => &["stage1.steps=2", "stage2.steps=100000", "stage2.checkpoint_every_steps=100000"],
        _ => &["stage1.steps=100000", "stage1.checkpoint_every_steps=100000"],
    };
    let sets = [&["stage1.validate_every_steps=0"], sets].concat();
    let world = TinyWorld::new();
    let mut running = Launch { ranks: 3, sets: &sets, ..world.run("slow") }.start();
    running.wait_for_step(phase, 5);
    let (worker, stderr) = (running.worker(slow), world.path("slow.stderr"));
    running.wait_for("a line that names the straggler", || {
        for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
            kill(worker, signal).expect("it runs");
            thread::sleep(Duration::from_millis(100));
        }
        fs::read_to_string(&stderr).is_ok_and(|said| said.contains(" is slow: "))
    });
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    let named: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(" is slow: ")).collect();
    assert!(named.iter().all(|line| line.contains(&format!("rank {slow} is slow"))), "{named:?}");
}
