//! `distributed.sharding = "frozen"`: ranks that hold the language model in parts train, write and resume as ranks that hold
//! all of it.

use crate::common::{Launch, TinyWorld, blip2, course};
use monitor::{EvalFile, Phase};

const PARTED: &str = "distributed.sharding=frozen";
/// Stage 1 is as in any other run, and short here.
const SETS: [&str; 5] = [
    "stage1.steps=2",
    "stage1.validate_every_steps=0",
    "stage2.steps=12",
    "stage2.checkpoint_every_steps=2",
    // Of three ranks one has a picture more than another to write about.
    "evaluation.max_captions=8",
];

fn launch<'a>(world: &'a TinyWorld, run: &'a str, sets: &'a [&'a str], ranks: usize) -> Launch<'a> {
    Launch { ranks, sets, ..world.run(run) }
}

/// Every number of the course and every caption, to the last bit.
fn assert_same(world: &TinyWorld, one: &str, other: &str) {
    course(&world.path(one)).assert_same(&course(&world.path(other)), other);
    let eval = |run: &str| EvalFile::read(&world.path(run).join("eval.json")).unwrap();
    assert_eq!(eval(one).captions, eval(other).captions);
    let gallery = |run: &str| {
        let text = std::fs::read_to_string(world.path(run).join("report.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["gallery"].clone()
    };
    assert_eq!(gallery(one), gallery(other));
}

#[test]
fn parts_change_no_bit_of_a_run_on_two_and_three_ranks() {
    let world = TinyWorld::new();
    for (ranks, language) in [(2, "weights/llama"), (3, "weights/llama"), (2, "weights/t5")] {
        let language = format!("model.language.weights={language}");
        let sets = [&SETS[..], &[language.as_str()]].concat();
        let parted = [&sets[..], &[PARTED]].concat();
        for (run, sets) in [("whole", &sets), ("parted", &parted)] {
            let _ = std::fs::remove_dir_all(world.path(run));
            launch(&world, run, sets, ranks).done();
        }
        assert_same(&world, "whole", "parted");
    }
}

#[test]
fn a_killed_rank_with_a_part_is_missed_and_the_run_goes_on_exactly() {
    let world = TinyWorld::new();
    let parted = [&SETS[..], &[PARTED]].concat();
    launch(&world, "whole", &SETS, 2).done();
    let launch = launch(&world, "parted", &parted, 2);
    let mut running = launch.start();
    running.wait_for_step(Phase::Stage2, 5);
    running.kill_rank(1);
    let ended = running.end();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 1 was killed by SIGKILL"), "{}", ended.stderr);
    launch.done();
    assert_same(&world, "whole", "parted");
}

#[test]
fn the_plan_tells_what_a_rank_holds_and_one_rank_is_refused() {
    let world = TinyWorld::new();
    let plan = |more: &[&str]| {
        let output =
            blip2().args(["plan", "config.toml"]).args(more).current_dir(world.path("")).output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        (output.status.code(), said)
    };
    let (code, said) = plan(&["--set", PARTED, "--nproc-per-node", "1"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("distributed.sharding") && said.contains("start more"), "{said}");
    let (code, said) = plan(&["--set", PARTED, "--nproc-per-node", "2"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("frozen language model: ") && said.contains("gathered layers"), "{said}");
    let (_, said) = plan(&["--nproc-per-node", "1"]);
    assert!(said.contains("frozen language model: ") && said.contains("MB on each rank"), "{said}");
}
