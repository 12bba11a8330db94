//! With `distributed.recovery = "regroup"` a rank that dies takes no other one with it: the others stay, no step is lost, and
//! not a bit of the run tells.

use std::fs;

use crate::common::{Course, Ended, Launch, Running, TinyWorld, course, records};
use checkpoint::TensorMap;
use monitor::{EvalFile, METRICS_FILE, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No checkpoint but those that a run cannot do without: who went back to one would be seen to.
const SETS: [&str; 6] = [
    "stage1.steps=60",
    "stage1.checkpoint_every_steps=1000",
    "stage1.validate_every_steps=20",
    "stage2.steps=30",
    "stage2.checkpoint_every_steps=1000",
    "distributed.recovery=\"regroup\"",
];

/// A world, and what a run in it comes to when nobody disturbs it.
struct Reference {
    world: TinyWorld,
    ranks: usize,
    course: Course,
    eval: EvalFile,
}

impl Reference {
    fn new(ranks: usize) -> Self {
        let world = TinyWorld::new();
        Launch { ranks, sets: &SETS, ..world.run("undisturbed") }.done();
        let run = world.path("undisturbed");
        let (course, eval) = (course(&run), EvalFile::read(&run.join("eval.json")).unwrap());
        Self { world, ranks, course, eval }
    }

    fn disturbed(&self) -> Disturbed<'_> {
        let launch =
            Launch { ranks: self.ranks, max_restarts: 9, sets: &SETS, ..self.world.run("disturbed") };
        Disturbed { reference: self, running: launch.start(), kills: 0 }
    }

    fn weights(&self, run: &str, phase: Phase) -> TensorMap {
        let dir = self.world.path(run).join("checkpoints").join(phase.name());
        checkpoint::latest_valid(&dir).unwrap().unwrap().snapshot.model
    }

    /// The disturbed run has ended, and neither a number nor a weight tells it from the other.
    fn assert_same(&self) {
        let run = self.world.path("disturbed");
        course(&run).assert_same(&self.course, "the disturbed run");
        let eval = EvalFile::read(&run.join("eval.json")).unwrap();
        assert_eq!((&eval.retrieval, &eval.captions), (&self.eval.retrieval, &self.eval.captions));
        for phase in [Phase::Stage1, Phase::Stage2] {
            let same = self.weights("disturbed", phase) == self.weights("undisturbed", phase);
            assert!(same, "weights of {phase}");
        }
        assert!(!run.join("failure.json").exists(), "it has been overcome");
    }
}

struct Disturbed<'a> {
    reference: &'a Reference,
    running: Running,
    kills: usize,
}

impl Disturbed<'_> {
    fn said(&self) -> String {
        fs::read_to_string(self.reference.world.path("disturbed.stderr")).unwrap()
    }

    /// The last step of `phase` on record.
    fn taken(&self, phase: Phase) -> u64 {
        let records = records(&self.reference.world.path("disturbed").join(METRICS_FILE));
        records.iter().filter(|record| record.phase == phase).map(|record| record.step).max().unwrap_or(0)
    }

    /// Where the phase was taken up last.
    fn taken_up(&self, phase: Phase) -> u64 {
        let said = self.said();
        let line = said
            .lines()
            .rfind(|line| line.contains(&format!("{}: ", phase.name())) && line.contains(", from step "));
        line.unwrap().rsplit_once(" from step ").unwrap().1.parse().unwrap()
    }

    /// `kill -9` of ranks once a step is taken; returns when training goes on. The others are the same processes as before,
    /// and not a step is taken twice.
    fn lose(&mut self, phase: Phase, step: u64, ranks: &[usize]) {
        self.running.wait_for_step(phase, step);
        let others = || (0..self.reference.ranks).filter(|rank| !ranks.contains(rank));
        let pids = |running: &Running| others().map(|rank| running.worker(rank)).collect::<Vec<Pid>>();
        let before = pids(&self.running);
        let dead: Vec<Pid> = ranks.iter().map(|&rank| self.running.worker(rank)).collect();
        let taken = self.taken(phase);
        dead.iter().for_each(|&worker| kill(worker, Signal::SIGKILL).unwrap());
        self.kills += 1;
        let (kills, stderr) = (self.kills, self.reference.world.path("disturbed.stderr"));
        self.running.wait_for("the next step", || {
            fs::read_to_string(&stderr).is_ok_and(|said| said.matches("going on: step").count() == kills)
        });
        assert_eq!(pids(&self.running), before, "{}", self.said());
        let up = self.taken_up(phase);
        assert!(up >= taken, "step {up} after {taken}: {}", self.said());
    }

    fn end(self) -> Ended {
        let ended = self.running.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!ended.stderr.contains("starting all ranks again"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("past the checkpoint"), "a step was taken again: {}", ended.stderr);
        self.reference.assert_same();
        ended
    }
}

#[test]
fn whoever_of_two_dies_the_other_goes_on_and_no_step_is_lost() {
    let reference = Reference::new(2);
    let mut run = reference.disturbed();
    for (phase, step, rank) in [
        (Phase::Stage1, 1, 0),
        (Phase::Stage1, 12, 1),
        // Close to a validation.
        (Phase::Stage1, 19, 0),
        (Phase::Stage1, 33, 0),
        (Phase::Stage2, 2, 1),
        (Phase::Stage2, 11, 0),
    ] {
        run.lose(phase, step, &[rank]);
    }
    let ended = run.end();
    assert_eq!(ended.stderr.matches("beside 1 that go on").count(), 6, "{}", ended.stderr);
    let spares = reference.world.path("disturbed/logs/spare-1.log");
    assert!(spares.is_file(), "a spare was kept");
}

#[test]
fn of_three_one_is_enough() {
    let reference = Reference::new(3);
    let mut run = reference.disturbed();
    run.lose(Phase::Stage1, 7, &[2]);
    run.lose(Phase::Stage1, 21, &[0, 1]);
    run.lose(Phase::Stage2, 5, &[0, 2]);
    run.end();
}

#[test]
fn where_none_is_left_or_the_meeting_fails_all_start_again() {
    let reference = Reference::new(2);
    let mut run = reference.disturbed();
    run.lose(Phase::Stage1, 5, &[1]);
    // Its successor dies before it has met the other.
    run.running.wait_for_step(Phase::Stage1, 23);
    let first = run.running.worker(0);
    kill(first, Signal::SIGKILL).unwrap();
    let stderr = reference.world.path("disturbed.stderr");
    run.running.wait_for("a second call", || {
        fs::read_to_string(&stderr).is_ok_and(|said| said.matches("that go on").count() == 2)
    });
    run.running.kill_rank(0);
    run.running.wait_for_step(Phase::Stage2, 3);
    for rank in 0..2 {
        run.running.kill_rank(rank);
    }
    let ended = run.running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("starting all ranks again"), "{}", ended.stderr);
    reference.assert_same();
}

#[test]
fn a_stop_after_a_loss_saves_and_launching_again_changes_no_bit() {
    let reference = Reference::new(2);
    let mut run = reference.disturbed();
    run.lose(Phase::Stage1, 9, &[0]);
    run.running.signal(Signal::SIGTERM);
    let ended = run.running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    Launch { sets: &SETS, ..reference.world.run("disturbed") }.done();
    reference.assert_same();
}

#[test]
fn a_run_that_cannot_regroup_is_refused() {
    let world = TinyWorld::new();
    let sets = ["distributed.recovery=\"regroup\"", "distributed.sharding=\"frozen\""];
    let ended = Launch { sets: &sets, ..world.run("refused") }.end();
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("needs sharding = \"none\""), "{}", ended.stderr);
}
