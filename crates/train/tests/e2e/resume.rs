//! A run that was interrupted ends as if it never had been: the same numbers, to the last bit.

use std::fs;

use crate::common::{Course, Ended, Launch, Running, TinyWorld, course, records};
use monitor::{EvalFile, METRICS_FILE, Phase};
use nix::sys::signal::Signal;

/// Long enough to be hit in the middle, with dropout, averages and the choice of the best step in play.
const SETS: [&str; 5] = [
    "stage1.steps=60",
    "stage1.checkpoint_every_steps=7",
    "stage1.validate_every_steps=20",
    "stage2.steps=30",
    "stage2.checkpoint_every_steps=4",
];
const STAGE1_STEPS: u64 = 60;

/// A world, and what a run in it comes to when nobody disturbs it.
struct Reference {
    world: TinyWorld,
    course: Course,
    eval: EvalFile,
}

impl Reference {
    fn new() -> Self {
        let world = TinyWorld::new();
        Launch { sets: &SETS, ..world.run("undisturbed") }.done();
        let run = world.path("undisturbed");
        let (course, eval) = (course(&run), EvalFile::read(&run.join("eval.json")).unwrap());
        assert_eq!(course.steps(Phase::Stage1), (1..=STAGE1_STEPS).collect::<Vec<_>>());
        Self { world, course, eval }
    }

    fn disturbed(&self) -> Launch<'_> {
        Launch { sets: &SETS, ..self.world.run("disturbed") }
    }

    /// Steps of stage 1 that are on record now.
    fn steps_taken(&self) -> u64 {
        let path = self.world.path("disturbed").join(METRICS_FILE);
        records(&path).iter().filter(|record| record.phase == Phase::Stage1).map(|r| r.step).max().unwrap()
    }

    /// The disturbed run has ended and nothing tells it from the other.
    fn assert_same(&self) {
        let run = self.world.path("disturbed");
        course(&run).assert_same(&self.course, "the disturbed run");
        let eval = EvalFile::read(&run.join("eval.json")).unwrap();
        assert_eq!((&eval.retrieval, &eval.captions), (&self.eval.retrieval, &self.eval.captions));
        let seconds = |eval: &EvalFile| eval.seconds.keys().copied().collect::<Vec<_>>();
        assert_eq!(seconds(&eval), seconds(&self.eval));
        assert!(!run.join("failure.json").exists(), "it has been overcome");
    }
}

/// Waits for a step and kills a rank.
fn killed(mut running: Running, phase: Phase, step: u64, rank: usize) -> Ended {
    running.wait_for_step(phase, step);
    running.kill_rank(rank);
    running.end()
}

#[test]
fn kill_9_of_a_rank_and_launching_again_changes_no_bit() {
    let reference = Reference::new();
    let ended = killed(reference.disturbed().start(), Phase::Stage1, 16, 1);
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 1 was killed by SIGKILL"), "{}", ended.stderr);
    assert!((16..STAGE1_STEPS).contains(&reference.steps_taken()), "killed too late");
    let taken = reference.steps_taken();
    let again = reference.disturbed().done();
    let resumed = steps_done(&again);
    assert!((1..=taken).contains(&resumed), "step {resumed} of {taken}: {}", again.stderr);
    reference.assert_same();
}

/// Where a launch took stage 1 up.
fn steps_done(ended: &Ended) -> u64 {
    let (_, rest) = ended.stderr.split_once("stage1: 60 steps, ").expect("a line that tells");
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_restart_goes_on_by_itself_in_either_stage() {
    let reference = Reference::new();
    let launch = Launch { max_restarts: 2, ..reference.disturbed() };
    let mut running = launch.start();
    running.wait_for_step(Phase::Stage1, 10);
    running.kill_rank(0);
    running.wait_for("the restart", || {
        fs::read_to_string(reference.world.path("disturbed/logs/rank-0.log"))
            .is_ok_and(|log| log.contains("generation 1"))
    });
    let ended = killed(running, Phase::Stage2, 6, 1);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in ["rank 0 was killed by SIGKILL", "rank 1 was killed by SIGKILL"] {
        assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
    }
    // What was saved in between has given the first restart back.
    let firsts = ended.stderr.matches("(1 of 2 without a new checkpoint)").count();
    assert_eq!(firsts, 2, "{}", ended.stderr);
    reference.assert_same();
}

#[test]
fn sigterm_saves_at_the_next_step_and_launching_again_changes_no_bit() {
    let reference = Reference::new();
    let mut running = reference.disturbed().start();
    running.wait_for_step(Phase::Stage1, 9);
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    let steps = reference.steps_taken();
    assert!(steps < STAGE1_STEPS, "stopped too late");
    let saved = checkpoint::list(&reference.world.path("disturbed/checkpoints/stage1")).unwrap();
    assert_eq!(saved.last().unwrap().step, steps, "no step is lost");
    let message = format!("stopped at step {steps} of stage1, with a checkpoint; launch again to go on");
    assert_eq!(ended.stderr.matches(&message).count(), 1, "{}", ended.stderr);
    let again = reference.disturbed().done();
    assert_eq!(steps_done(&again), steps, "{}", again.stderr);
    reference.assert_same();
}

#[test]
fn what_stages_cost_is_known_although_the_launch_that_ended_them_could_not_write_it_down() {
    let world = TinyWorld::new();
    world.run("run").done();
    let run = world.path("run");
    let before = EvalFile::read(&run.join("eval.json")).unwrap();
    for file in ["ledger.json", "report.html"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    world.run("run").done();
    let after = EvalFile::read(&run.join("eval.json")).unwrap();
    assert_eq!(after.pairs_per_second, before.pairs_per_second);
    for stage in [Phase::Stage1, Phase::Stage2] {
        assert_eq!(after.seconds[&stage], before.seconds[&stage], "{stage}");
    }

    fs::remove_file(run.join("report.html")).unwrap();
    world.run("run").done();
    let once_more = EvalFile::read(&run.join("eval.json")).unwrap();
    assert_eq!(once_more.seconds[&Phase::Stage1], before.seconds[&Phase::Stage1], "it was not trained again");
    let features = [&after, &once_more].map(|eval| eval.seconds[&Phase::Features]);
    assert!(features[1] > features[0] && features[0] > 0.0, "{features:?}: each launch loads the models");
}
