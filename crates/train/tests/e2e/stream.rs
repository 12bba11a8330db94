//! Training on pictures that are decoded and encoded in each step, for sets too large to keep features of.

use std::collections::BTreeMap;

use crate::common::{Course, Launch, TRAIN_PICTURES, TinyWorld, course, records};
use monitor::{Phase, RecordKind};

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
fn pairs_of_one_picture_are_one_concept_in_a_stream_and_in_a_cache_on_any_number_of_ranks() {
    let world = world();
    let grouped: Vec<&str> =
        PLAIN.into_iter().chain(["data.group_by_image_id=true", "stage2.steps=2"]).collect();
    let cached: Vec<&str> = grouped.iter().copied().chain(["data.features.views=0"]).collect();
    Launch { ranks: 1, sets: &cached, ..world.run("cached") }.done();
    streamed(&world, "one", 1, &grouped).done();
    streamed(&world, "two", 2, &grouped).done();
    streamed(&world, "alone", 1, &PLAIN).done();
    let stage1 = |run| course(&world.path(run)).curve(Phase::Stage1, "loss");
    let [cached, one, two, alone] = ["cached", "one", "two", "alone"].map(stage1);
    assert_near(&one, &two, 1e-4, "one rank and two");
    assert_near(&cached, &one, 5e-3, "cache and stream");
    // Little, for a model that has learnt nothing, and more than the tolerance above.
    let apart = one.iter().zip(&alone).map(|(one, alone)| (one - alone).abs() / alone).fold(0.0, f64::max);
    assert!(apart > 2e-4, "{apart}: {one:?} and {alone:?}");
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

/// Three of the 48 training samples are bad, each in its own way.
fn spoilt_world() -> TinyWorld {
    let world = world();
    let mut pictures = crate::common::pictures();
    pictures[3].png = b"no picture".to_vec();
    pictures[10].caption = " ".into();
    let half = pictures[40].png.len() / 2;
    pictures[40].png.truncate(half);
    for (shard, part) in pictures[..TRAIN_PICTURES].chunks(TRAIN_PICTURES / 2).enumerate() {
        crate::common::write_shard(&world.path(&format!("shards/train-{shard:06}.tar")), part);
    }
    world
}

/// What was left out, by reason, up to each step of both stages.
fn left_out(world: &TinyWorld, run: &str) -> Vec<(Phase, u64, BTreeMap<String, u64>)> {
    let records = records(&world.path(run).join("metrics.jsonl"));
    let steps = records.into_iter().filter(|record| record.kind == RecordKind::Step);
    steps.map(|record| (record.phase, record.step, record.left_out)).collect()
}

#[test]
fn what_is_left_out_is_the_runs_whatever_the_number_of_ranks_and_launches() {
    let world = spoilt_world();
    let sets = ["data.max_skipped_ratio=0.2"];
    // 12 steps of 12 pairs are three epochs.
    let told = "stage1: 9 of 144 samples left out: \
                shards/train-000000.tar: caption_empty 3, image_format_unknown 3; \
                shards/train-000001.tar: image_corrupt 3";
    let mut running = streamed(&world, "killed", 2, &sets).start();
    running.wait_for_step(Phase::Stage1, 6);
    running.kill_rank(1);
    assert_ne!(running.end().code, Some(0));
    for (run, ranks) in [("one", 1), ("two", 2), ("killed", 2)] {
        let ended = streamed(&world, run, ranks, &sets).done();
        assert!(ended.stderr.contains(told), "{run}: {}", ended.stderr);
        let page = std::fs::read_to_string(world.path(run).join("report.html")).expect("a report");
        assert!(page.contains(told), "the report of {run} does not tell");
    }
    let one = left_out(&world, "one");
    let reasons = ["caption_empty", "image_corrupt", "image_format_unknown"];
    let three_each = BTreeMap::from(reasons.map(|reason| (reason.to_owned(), 3)));
    assert!(one.contains(&(Phase::Stage1, 12, three_each)), "{one:?}");
    assert_eq!(left_out(&world, "two"), one);
    assert_eq!(left_out(&world, "killed"), one);
}

#[test]
fn too_many_bad_samples_end_a_run_at_the_same_step_on_any_number_of_ranks() {
    let world = spoilt_world();
    // Four of the first 200 samples are borne.
    let sets = ["data.max_skipped_ratio=0.02"];
    let last_steps = [("one", 1), ("two", 2)].map(|(run, ranks)| {
        let ended = streamed(&world, run, ranks, &sets).end();
        assert_eq!(ended.code, Some(93), "{}", ended.stderr);
        assert!(
            ended
                .stderr
                .contains("more than max_skipped_ratio 0.02; by shard and reason: shards/train-00000"),
            "{}",
            ended.stderr
        );
        left_out(&world, run).pop()
    });
    let [one, two] = last_steps;
    assert!(one.is_some() && one == two, "{one:?} and {two:?}");
}

#[test]
fn a_cache_that_cannot_be_written_may_be_written_the_next_time() {
    let world = world();
    let sets = ["data.train=[\"http://127.0.0.1:9/0.tar\"]", "data.source.cache.dir=config.toml/cache"];
    let ended = streamed(&world, "run", 1, &sets).end();
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains("config.toml/cache could not be written"), "{}", ended.stderr);
}
