//! Asked to stop at any moment of its life a run ends with 75, and goes on exactly.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Launch, TinyWorld, course};
use monitor::Phase;
use nix::sys::signal::{Signal, kill};

#[test]
fn a_stop_in_any_window_ends_with_75_and_changes_nothing() {
    let world = TinyWorld::new();
    let undisturbed = world.run("undisturbed").done();
    let expected = course(&world.path("undisturbed"));
    let signals = [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGINT];
    // From the rendezvous to the report; the features are cached by now, so weights, steps and evaluation remain.
    const WINDOWS: u32 = 8;
    let mut stopped = 0;
    for window in 0..WINDOWS {
        let run = format!("window-{window}");
        let launch = world.run(&run);
        let mut running = launch.start();
        running.wait_for("the start of the workers", || world.path(&run).join("logs/rank-1.log").is_file());
        let length = Duration::from_secs_f64(undisturbed.seconds);
        thread::sleep(length * window / (2 * WINDOWS));
        let (signal, asked) = (signals[window as usize % signals.len()], Instant::now());
        running.signal(signal);
        let ended = running.end();
        // On a busy machine the undisturbed run may have been the slow one: this one has ended before it was asked.
        if ended.code == Some(0) {
            course(&world.path(&run)).assert_same(&expected, &run);
            continue;
        }
        stopped += 1;
        assert_eq!(ended.code, Some(75), "{signal} in window {window}: {}", ended.stderr);
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "{signal} in window {window}: {:?}",
            asked.elapsed()
        );
        launch.done();
        course(&world.path(&run)).assert_same(&expected, &run);
    }
    assert!(stopped >= WINDOWS / 2, "only {stopped} of {WINDOWS} signals stopped a run");
}

#[test]
fn a_stop_in_a_validation_leaves_it_to_the_next_launch() {
    let world = TinyWorld::new();
    // More candidates, so that most of the time is spent there.
    let sets = ["stage1.validate_every_steps=1", "evaluation.rerank_candidates=12", "stage2.steps=2"];
    let runs: Vec<String> = (0..6).map(|trial| format!("trial-{trial}")).collect();
    let launch = |run| Launch { sets: &sets, ..world.run(run) };
    launch("undisturbed").done();
    let expected = course(&world.path("undisturbed"));
    let mut left_for_later = 0;
    for (trial, run) in (0u64..).zip(&runs) {
        let mut running = launch(run).start();
        running.wait_for_step(Phase::Stage1, 1 + trial);
        // One rank is enough: they agree.
        kill(running.worker((trial % 2) as usize), Signal::SIGUSR1).unwrap();
        let ended = running.end();
        assert_eq!(ended.code, Some(75), "trial {trial}: {}", ended.stderr);
        let saved = checkpoint::list(&world.path(run).join("checkpoints/stage1")).unwrap();
        let state = checkpoint::load(&saved.last().unwrap().path).unwrap().1.state;
        left_for_later += u32::from(state["validation_due"] == true);
        launch(run).done();
        course(&world.path(run)).assert_same(&expected, run);
    }
    assert!(left_for_later > 0, "no stop fell into a validation");
}

/// A scheduler that is told 75 believes that nothing is lost, and would launch again into the same full disk for ever.
#[test]
fn a_stop_whose_checkpoint_cannot_be_written_is_a_failure_on_every_rank() {
    let world = TinyWorld::new();
    let sets =
        ["stage1.steps=100000", "stage1.checkpoint_every_steps=100000", "stage1.validate_every_steps=0"];
    let launch = Launch { sets: &sets, ..world.run("full") };
    let mut running = launch.start();
    running.wait_for_step(Phase::Stage1, 3);
    let checkpoints = world.path("full/checkpoints/stage1");
    fs::rename(&checkpoints, world.path("elsewhere")).expect("a folder");
    fs::write(&checkpoints, "no folder").expect("a file");
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    let failure = fs::read_to_string(world.path("full/failure.json")).expect("a report");
    assert!(failure.contains("checkpoints/stage1"), "{failure}");
    let other = fs::read_to_string(world.path("full/logs/rank-1.log")).expect("a log");
    assert!(!other.contains("with a checkpoint"), "{other}");
}
