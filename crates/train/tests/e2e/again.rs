//! A second launch in a run folder: what may have changed since the first, and what may not.

use std::fs;
use std::path::Path;

use crate::common::{Ended, Launch, TinyWorld, course};
use monitor::Phase;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const QUICK: [&str; 4] =
    ["stage1.steps=4", "stage1.validate_every_steps=2", "stage2.steps=2", "evaluation.max_captions=2"];

fn again(world: &TinyWorld, set: &str) -> Ended {
    let mut sets = QUICK.to_vec();
    sets.push(set);
    Launch { sets: &sets, ..world.run("run") }.end()
}

fn finished() -> TinyWorld {
    let world = TinyWorld::new();
    Launch { sets: &QUICK, ..world.run("run") }.done();
    world
}

#[test]
fn a_config_under_which_other_things_were_trained_is_refused() {
    let world = finished();
    let kept = fs::read(world.path("run/config.toml")).unwrap();
    for (set, table) in [
        ("data.max_text_tokens=7", "data"),
        ("model.qformer.dropout=0.2", "model"),
        ("stage1.optim.peak_lr=2e-3", "stage1"),
        ("stage2.steps=3", "stage2"),
    ] {
        let refused = again(&world, set);
        assert_eq!(refused.code, Some(78), "{set}: {}", refused.stderr);
        let said = format!("the last launch in run had another {table}, ");
        assert!(refused.stderr.contains(&said), "{set}: {}", refused.stderr);
        assert!(refused.stderr.contains("use another run.dir, or remove run"), "{}", refused.stderr);
    }
    assert_eq!(fs::read(world.path("run/config.toml")).unwrap(), kept);
    assert!(world.path("run/report.html").is_file(), "nothing was touched");
}

#[test]
fn a_changed_evaluation_is_done_anew_with_a_warning() {
    let world = finished();
    let report = world.path("run/report.html");
    let mut running =
        Launch { sets: &[&QUICK[..3], &["evaluation.max_captions=3"]].concat(), ..world.run("run") }.start();
    running.wait_for("the old report gone", || !report.is_file());
    running.signal(Signal::SIGKILL);
    drop(running);

    let ended = again(&world, "evaluation.max_captions=3");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("this run has ended"), "the report was the old one: {}", ended.stderr);
    assert_eq!(course(&world.path("run")).steps(Phase::Stage2), [1, 2], "nothing was trained again");

    let other = again(&world, "evaluation.max_captions=4");
    let said = "the config has changed since the last launch in evaluation";
    assert_eq!((other.code, other.stderr.matches(said).count()), (Some(0), 1), "{}", other.stderr);
    assert!(fs::read_to_string(&report).unwrap().contains(said), "the report does not tell");
}

/// Changes one bit of the last tensor.
fn alter(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn other_frozen_weights_under_the_same_name_are_refused() {
    for (folder, model) in [("vit", "vision"), ("llama", "language")] {
        let world = finished();
        fs::remove_file(world.path("run/report.html")).unwrap();
        alter(&world.path(&format!("weights/{folder}/model.safetensors")));
        let refused = Launch { sets: &QUICK, ..world.run("run") }.end();
        assert_eq!(refused.code, Some(78), "{}", refused.stderr);
        let said = format!("a change of the weights in model.{model}.weights; undo it");
        assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    }
}

#[test]
fn checkpoints_name_their_parent_and_frozen_weights() {
    let world = finished();
    let stage1 = world.path("run/checkpoints/stage1");
    let best = checkpoint::pinned(&stage1).unwrap().unwrap();
    let parent = format!("stage1/{}", best.path.file_name().unwrap().to_str().unwrap());
    for listed in checkpoint::list(&world.path("run/checkpoints/stage2")).unwrap() {
        let manifest = checkpoint::verify(&listed.path).unwrap();
        assert_eq!(manifest.parent.as_deref(), Some(parent.as_str()));
        assert_eq!(manifest.frozen.keys().collect::<Vec<_>>(), ["data", "language", "tokens", "vision"]);
    }
    for listed in checkpoint::list(&stage1).unwrap() {
        let manifest = checkpoint::verify(&listed.path).unwrap();
        assert_eq!(manifest.parent, None);
        assert_eq!(manifest.frozen.keys().collect::<Vec<_>>(), ["data", "vision", "words"]);
    }
}

#[test]
fn pictures_that_could_not_be_read_are_tried_again() {
    let world = finished();
    let sidecars: Vec<_> = fs::read_dir(world.path("features"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert_eq!(sidecars.len(), 3, "training and two splits");
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let rows = |path: &Path| fs::read(path.with_extension("features")).unwrap();
    let before: Vec<_> = sidecars.iter().map(|path| rows(path)).collect();
    for path in &sidecars {
        let mut shape = read(path);
        shape["unread"] = json!([0, 5]);
        fs::write(path, shape.to_string()).unwrap();
        // Sample 0 comes first in the file.
        let mut bytes = rows(path);
        bytes[..16].fill(0);
        fs::write(path.with_extension("features"), bytes).unwrap();
    }
    Launch { sets: &QUICK, ..world.run("other") }.done();
    for (path, before) in sidecars.iter().zip(before) {
        assert_eq!(read(path)["unread"], json!([]));
        assert!(rows(path) == before, "{}", path.display());
    }
}

#[test]
fn a_stop_where_no_step_is_taken_is_heard() {
    let world = TinyWorld::new();
    // The features of so many views would take very long.
    let launch = Launch { sets: &["data.features.views=2000"], ..world.run("run") };
    let mut running = launch.start();
    let features = world.path("features");
    running.wait_for("the first features", || {
        fs::read_dir(&features).is_ok_and(|mut files| files.next().is_some())
    });
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("stopped during features"), "{}", ended.stderr);
    assert!(ended.seconds < 20.0, "{} s", ended.seconds);
}
