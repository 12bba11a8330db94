//! Faults at random moments: the run recovers, and not a bit of it tells.

mod common;

use common::{Chaos, Scenario};

#[test]
fn random_faults_are_overcome_exactly() {
    let mut chaos = Chaos::new(1);
    let scenarios = [(Scenario::P1, 4), (Scenario::P3, 2), (Scenario::P4, 1), (Scenario::P5, 5)];
    for (scenario, trials) in scenarios {
        for trial in 0..trials {
            let trial = (trial, chaos.trial(scenario));
            assert!(trial.1.recovered && trial.1.exact, "{scenario:?}: {trial:?}");
        }
    }
}
