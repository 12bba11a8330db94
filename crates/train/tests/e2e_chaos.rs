//! Faults at random moments: the run recovers, and not a bit of it tells.

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use common::{Chaos, Launch, Scenario, TinyWorld};
use monitor::Phase;
use nix::sys::signal::{Signal, kill};

#[test]
fn random_faults_are_overcome_exactly() {
    let mut chaos = Chaos::new(1);
    overcome(&mut chaos, &[(Scenario::P1, 4), (Scenario::P3, 2), (Scenario::P4, 1), (Scenario::P5, 5)]);
}

#[test]
fn p2_ranks_that_die_together_are_overcome_exactly() {
    overcome(&mut Chaos::new(2), &[(Scenario::P2, 3)]);
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

/// Stopped for half of the time, each tenth of a second, until somebody says that a rank is slow. In stage 2: in stage 1
/// ranks wait for each other inside `compute` as well, which is not counted as waiting.
#[test]
#[ignore = "never seen to pass: fails in stage 1, where ranks wait inside compute; not yet run in stage 2"]
fn t7_a_rank_that_gets_half_of_the_time_is_named_and_no_other() {
    let world = TinyWorld::new();
    let sets = ["stage1.steps=2", "stage2.steps=100000", "stage2.checkpoint_every_steps=100000"];
    for slow in [2, 0] {
        let run = format!("slow-{slow}");
        let mut running = Launch { ranks: 3, sets: &sets, ..world.run(&run) }.start();
        running.wait_for_step(Phase::Stage2, 5);
        let (worker, stderr) = (running.worker(slow), world.path(&format!("{run}.stderr")));
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
}
