//! Steps whose numbers are none: left out on all ranks, written down, and in the end a reason to go back or to give up.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::{Launch, TinyWorld, records};
use monitor::{Phase, RecordKind};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Stage 1 takes each of the 48 pictures once in four steps.
const QUICK: [&str; 5] = [
    "stage1.steps=8",
    "stage1.checkpoint_every_steps=1",
    "stage2.steps=2",
    "evaluation.max_captions=2",
    "data.texts.mixture.tags=0.2",
];

/// The features of the training pictures, and how many bytes each picture has there.
fn training_features(world: &TinyWorld) -> (PathBuf, u64) {
    let files = fs::read_dir(world.path("features")).unwrap().map(|entry| entry.unwrap().path());
    let sidecar = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap()
    };
    let path = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "features"))
        .max_by_key(|path| sidecar(path)["samples"].as_u64())
        .unwrap();
    let shape = sidecar(&path);
    let bytes =
        ["views", "tokens", "width"].iter().map(|key| shape[key].as_u64().unwrap()).product::<u64>() * 2;
    (path, bytes)
}

/// Makes the features of these pictures no numbers.
fn poison(world: &TinyWorld, samples: std::ops::Range<u64>) {
    let (path, bytes) = training_features(world);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let nan = half::f16::NAN.to_le_bytes().repeat((bytes / 2) as usize);
    samples.for_each(|sample| file.write_all_at(&nan, sample * bytes).unwrap());
}

fn skipped(world: &TinyWorld, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(world.path(run).join("skipped_steps.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Steps of stage 1 whose loss is no number.
fn without_loss(world: &TinyWorld, run: &str) -> BTreeSet<u64> {
    let records = records(&world.path(run).join("metrics.jsonl"));
    let those = records.iter().filter(|record| {
        record.phase == Phase::Stage1 && record.kind == RecordKind::Step && record.losses["loss"].is_nan()
    });
    those.map(|record| record.step).collect()
}

#[test]
fn f1_f2_a_picture_without_numbers_costs_its_steps_on_all_ranks_and_is_named() {
    let world = TinyWorld::new();
    Launch { sets: &QUICK, ..world.run("clean") }.done();
    poison(&world, 0..1);
    for (run, ranks) in [("two", 2), ("one", 1)] {
        let ended = Launch { sets: &QUICK, ranks, ..world.run(run) }.done();
        let left_out = without_loss(&world, run);
        assert_eq!(left_out.len(), 2, "once in each of two passes: {left_out:?}");
        let lines = skipped(&world, run);
        let of_stage1: Vec<&Value> = lines.iter().filter(|line| line["phase"] == "stage1").collect();
        let named: BTreeSet<u64> =
            of_stage1.iter().map(|line| line["after_step"].as_u64().unwrap() + 1).collect();
        assert_eq!(named, left_out);
        for line in of_stage1 {
            assert_eq!((&line["why"], &line["loss"]), (&Value::from("not_finite"), &Value::Null));
            let samples = line["samples"].as_array().unwrap();
            assert_eq!(samples.len(), 12, "the whole batch of both ranks");
            assert!(samples.iter().any(|key| key == "shards/train-000000.tar: 000"), "{samples:?}");
        }
        assert!(
            ended.stderr.contains("left out on all ranks: loss or gradient is not finite"),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(skipped(&world, "two")[0]["samples"], skipped(&world, "one")[0]["samples"]);
}

#[test]
fn f1_a_step_that_is_left_out_changes_no_weight() {
    let world = TinyWorld::new();
    Launch { sets: &QUICK, ..world.run("clean") }.done();
    poison(&world, 0..1);
    Launch { sets: &QUICK, ..world.run("long") }.done();
    let second = *without_loss(&world, "long").last().unwrap();
    let steps = format!("stage1.steps={second}");
    let sets = [&QUICK[1..], &[steps.as_str(), "stage1.keep_checkpoints=9", "stage1.validate_every_steps=0"]]
        .concat();
    Launch { sets: &sets, ..world.run("short") }.done();
    let weights = |step: u64| {
        let folder = world.path("short/checkpoints/stage1").join(format!("step-{step:08}"));
        fs::read(folder.join("model.safetensors")).unwrap()
    };
    assert!(weights(second) == weights(second - 1), "step {second} was left out");
    assert!(weights(second - 1) != weights(second - 2), "step {} was taken", second - 1);
}

#[test]
fn f1_a_run_that_finds_no_numbers_goes_back_three_times_and_then_gives_up() {
    let world = TinyWorld::new();
    let sets = ["stage1.steps=200", "stage1.checkpoint_every_steps=2", "stage1.validate_every_steps=0"];
    let launch = Launch { sets: &sets, ..world.run("run") };
    let mut running = launch.start();
    running.wait_for_step(Phase::Stage1, 4);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code, Some(75));
    let kept = checkpoint::list(&world.path("run/checkpoints/stage1")).unwrap();
    let newest = kept.iter().map(|listed| listed.step).max().unwrap();
    poison(&world, 0..crate::common::TRAIN_PICTURES as u64);
    let ended = launch.end();
    assert_eq!(ended.code, Some(93), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.matches(&format!("back to step {newest} with the samples that follow")).count(),
        3
    );
    assert!(ended.stderr.contains("after 3 returns to a checkpoint"), "{}", ended.stderr);
    let lines = skipped(&world, "run");
    assert_eq!(lines.len(), 80, "20 steps, and 20 more after each return");
    let positions: BTreeSet<u64> =
        lines.iter().map(|line| line["first_position"].as_u64().unwrap()).collect();
    assert_eq!(positions.len(), 80, "no batch was tried twice");
    let after = checkpoint::list(&world.path("run/checkpoints/stage1")).unwrap();
    assert_eq!(after.iter().map(|listed| listed.step).max(), Some(newest), "no checkpoint of a lost step");
}
