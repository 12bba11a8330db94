//! `deploy/slurm/train.sbatch` under a real SLURM: three virtual nodes on this machine, two of them for each job.

use crate::common::slurm::{Job, Slurm};
use crate::common::{Launch, TinyWorld, course, records};
use monitor::Phase;

const SETS: [&str; 3] =
    ["stage1.steps=200", "stage1.checkpoint_every_steps=50", "stage1.validate_every_steps=100"];

fn submit<'a>(slurm: &'a Slurm, world: &TinyWorld, run: &str) -> Job<'a> {
    let run_dir = format!("run.dir={run}");
    let sets = SETS.into_iter().chain([run_dir.as_str()]).flat_map(|set| ["--set", set]);
    slurm.submit(world, &["config.toml"].into_iter().chain(sets).collect::<Vec<_>>())
}

fn wait_for_step(job: &Job<'_>, world: &TinyWorld, run: &str, step: u64) {
    let path = world.path(run).join("metrics.jsonl");
    let there = |record: &monitor::StepRecord| record.phase == Phase::Stage1 && record.step >= step;
    job.wait_for("a step", || path.is_file() && records(&path).iter().any(there));
}

/// A job that wants all nodes, and goes first.
fn preempt(slurm: &Slurm) {
    slurm.ask(
        "sbatch",
        &["--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"],
    );
}

/// Put back with a checkpoint, started again, and in the end as if nothing had been.
fn goes_on_exactly(job: &Job<'_>, world: &TinyWorld, run: &str) {
    job.wait_for_state("PENDING");
    assert_eq!(job.field("Restarts"), "1", "{}", job.log());
    assert!(world.path(run).join("checkpoints/stage1").is_dir(), "{}", job.log());
    job.start_now();
    job.wait_for_state("COMPLETED");
    let log = job.log();
    for part in ["start 0\n", "start 1\n", "stopped with a checkpoint; job"] {
        assert!(log.contains(part), "{part:?} is not in: {log}");
    }
    course(&world.path("undisturbed")).assert_same(&course(&world.path(run)), run);
}

#[test]
#[ignore = "takes SLURM's daemons, and root; scripts/slurm-test"]
fn jobs_that_are_warned_or_preempted_go_on_exactly_and_refused_ones_do_not_come_back() {
    let world = TinyWorld::new();
    Launch { sets: &SETS, ..world.run("undisturbed") }.done();
    let slurm = Slurm::start(true);

    let job = submit(&slurm, &world, "warned");
    wait_for_step(&job, &world, "warned", 20);
    // What `--signal=USR1@120` sends before the time limit.
    slurm.ask("scancel", &["--signal=USR1", &job.id]);
    goes_on_exactly(&job, &world, "warned");

    let job = submit(&slurm, &world, "preempted");
    wait_for_step(&job, &world, "preempted", 20);
    preempt(&slurm);
    goes_on_exactly(&job, &world, "preempted");

    let job = slurm.submit(&world, &["config.toml", "--set", "stage1.steps=0", "--set", "run.dir=refused"]);
    job.wait_for_state("FAILED");
    assert_eq!(
        (job.field("ExitCode").as_str(), job.field("Restarts").as_str()),
        ("78:0", "0"),
        "{}",
        job.log()
    );
}

#[test]
#[ignore = "takes SLURM's daemons, and root; scripts/slurm-test"]
fn jobs_that_get_sigterm_without_a_warning_go_on_exactly() {
    let world = TinyWorld::new();
    Launch { sets: &SETS, ..world.run("undisturbed") }.done();
    let slurm = Slurm::start(false);

    // To the batch script alone.
    let job = submit(&slurm, &world, "signalled");
    wait_for_step(&job, &world, "signalled", 20);
    slurm.ask("scancel", &["--batch", "--signal=TERM", &job.id]);
    goes_on_exactly(&job, &world, "signalled");

    let job = submit(&slurm, &world, "preempted");
    wait_for_step(&job, &world, "preempted", 20);
    preempt(&slurm);
    goes_on_exactly(&job, &world, "preempted");

    // Who cancels a job does not want it back.
    let job = submit(&slurm, &world, "cancelled");
    wait_for_step(&job, &world, "cancelled", 20);
    slurm.ask("scancel", &[&job.id]);
    job.wait_for("end", || ["CANCELLED", "PENDING"].contains(&job.field("JobState").as_str()));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(
        (job.field("JobState").as_str(), job.field("Restarts").as_str()),
        ("CANCELLED", "0"),
        "{}",
        job.log()
    );
}
