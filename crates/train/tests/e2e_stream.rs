//! Training on pictures that are decoded and encoded in each step, for sets too large to keep features of.

mod common;

use common::{Course, Launch, TinyWorld, course};
use monitor::Phase;

/// No augmentation: a view of the stream is then the plain view that a cache keeps.
const PLAIN: [&str; 4] = [
    "data.transform.flip_probability=0.0",
    "data.transform.random_resized_crop.scale=[1.0, 1.0]",
    "data.transform.random_resized_crop.ratio=[1.0, 1.0]",
    "model.qformer.dropout=0.0",
];

/// A world whose `stream.toml` has no feature cache.
fn world() -> TinyWorld {
    let world = TinyWorld::new();
    let text = std::fs::read_to_string(world.path("config.toml")).expect("the config");
    let (before, rest) = text.split_once("[data.features]").expect("a cache");
    let (_, after) = rest.split_once("\n[").expect("a table behind it");
    std::fs::write(world.path("stream.toml"), format!("{before}[{after}")).expect("a config");
    world
}

fn streamed<'a>(world: &'a TinyWorld, run: &'a str, ranks: usize, sets: &'a [&'a str]) -> Launch<'a> {
    Launch { config: "stream.toml", ranks, sets, ..world.run(run) }
}

fn losses(course: &Course) -> Vec<f64> {
    [Phase::Stage1, Phase::Stage2].into_iter().flat_map(|phase| course.curve(phase, "loss")).collect()
}

fn assert_near(one: &[f64], two: &[f64], tolerance: f64, what: &str) {
    assert_eq!(one.len(), two.len(), "{what}");
    for (step, (a, b)) in one.iter().zip(two).enumerate() {
        assert!((a - b).abs() <= tolerance * a, "{what}, step {step}: {a} and {b}");
    }
}

#[test]
fn a_stream_learns_what_a_cache_learns_on_any_number_of_ranks() {
    let world = world();
    let sets: Vec<&str> = PLAIN.into_iter().chain(["data.features.views=0"]).collect();
    Launch { ranks: 1, sets: &sets, ..world.run("cached") }.done();
    streamed(&world, "one", 1, &PLAIN).done();
    streamed(&world, "two", 2, &PLAIN).done();
    let parts = ["stage1.micro_batch=2", "stage1.contrastive_accumulation=cached"];
    let parts: Vec<&str> = PLAIN.into_iter().chain(parts).collect();
    streamed(&world, "parts", 2, &parts).done();
    let [cached, one, two, parts] =
        ["cached", "one", "two", "parts"].map(|run| losses(&course(&world.path(run))));
    assert_near(&one, &two, 1e-4, "one rank and two");
    assert_near(&one, &parts, 1e-4, "one rank, and two in three parts each");
    // A cache keeps 16 bits.
    assert_near(&cached, &one, 5e-3, "cache and stream");
}

#[test]
fn a_killed_stream_goes_on_bit_for_bit() {
    let world = world();
    streamed(&world, "whole", 2, &[]).done();
    for (phase, step) in [(Phase::Stage1, 6), (Phase::Stage2, 3)] {
        let mut running = streamed(&world, "killed", 2, &[]).start();
        running.wait_for_step(phase, step);
        running.kill_rank(1);
        assert_ne!(running.end().code, Some(0));
    }
    streamed(&world, "killed", 2, &[]).done();
    course(&world.path("whole")).assert_same(&course(&world.path("killed")), "killed twice");
}

#[test]
fn a_bad_picture_is_replaced_and_told() {
    let world = world();
    let mut pictures = common::pictures();
    pictures[3].png = b"no picture".to_vec();
    common::write_shard(&world.path("shards/train-000000.tar"), &pictures[..common::TRAIN_PICTURES / 2]);
    let ended = streamed(&world, "run", 2, &["data.max_skipped_ratio=0.1"]).done();
    assert!(ended.stderr.contains("samples left out"), "{}", ended.stderr);
    let ended = streamed(&world, "strict", 2, &["data.max_skipped_ratio=0.0"]).end();
    assert_eq!(ended.code, Some(93), "{}", ended.stderr);
    assert!(ended.stderr.contains("train-000000.tar"), "{}", ended.stderr);
}
