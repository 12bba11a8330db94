//! Stages that start from weights which somebody else trained: an import, or another run's checkpoint.

use std::path::PathBuf;

use crate::common::{Ended, Launch, TinyWorld, blip2, course};
use monitor::{EvalFile, Phase};

/// No step of stage 1 is taken.
const UNTRAINED: [&str; 2] = ["stage1.from=imported", "stage1.steps=0"];

fn run_blip2(world: &TinyWorld, arguments: &[&str]) {
    let output = blip2().args(arguments).current_dir(world.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A finished run, and its stage 1 as LAVIS would publish it, imported into `imported/`.
fn published() -> TinyWorld {
    let world = TinyWorld::new();
    world.run("run").done();
    let best = checkpoint::pinned(&world.path("run/checkpoints/stage1")).unwrap().unwrap();
    run_blip2(&world, &["export", best.path.to_str().unwrap(), "stage1.pth", "--to", "lavis"]);
    std::fs::write(world.path("sizes.json"), r#"{"qformer_config": {"num_attention_heads": 4}}"#).unwrap();
    run_blip2(&world, &["import", "stage1.pth", "imported", "--config", "sizes.json"]);
    world
}

fn eval(world: &TinyWorld, run: &str) -> EvalFile {
    EvalFile::read(&world.path(run).join("eval.json")).unwrap()
}

fn newest(world: &TinyWorld, phase: &str) -> PathBuf {
    checkpoint::list(&world.path(phase)).unwrap().last().unwrap().path.clone()
}

fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    for part in parts {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn stage_2_goes_on_from_a_published_stage_1_as_from_its_own() {
    let world = published();
    let launch = Launch { sets: &UNTRAINED, ..world.run("from") };
    launch.done();
    let (own, from) = (course(&world.path("run")), course(&world.path("from")));
    assert!(from.steps(Phase::Stage1).is_empty());
    for name in ["loss", "grad_norm"] {
        assert_eq!(
            own.curve(Phase::Stage2, name),
            from.curve(Phase::Stage2, name),
            "{name}, to the last bit"
        );
    }
    let (own, from) = (eval(&world, "run"), eval(&world, "from"));
    assert_eq!((&own.retrieval, &own.captions), (&from.retrieval, &from.captions));
    assert!(!from.pairs_per_second.contains_key(&Phase::Stage1), "no pair was seen");
    let manifest = checkpoint::verify(&newest(&world, "from/checkpoints/stage1")).unwrap();
    assert_eq!(manifest.step, 0);
    assert!(manifest.parent.unwrap().ends_with("imported"));
    // Launched again with only the report gone, it finds what was handed over.
    std::fs::remove_file(world.path("from/report.html")).unwrap();
    launch.done();
    assert_eq!(eval(&world, "from").captions, from.captions);
}

#[test]
fn a_stage_trains_on_from_a_checkpoint_of_another_run() {
    let world = TinyWorld::new();
    world.run("run").done();
    let stage1 = newest(&world, "run/checkpoints/stage1");
    let stage2 = newest(&world, "run/checkpoints/stage2");
    let from = [format!("stage1.from={}", stage1.display()), format!("stage2.from={}", stage2.display())];
    let sets = [from[0].as_str(), from[1].as_str(), "stage2.optim.warmup_steps=0"];
    Launch { sets: &sets, ..world.run("on") }.done();
    let (before, on) = (course(&world.path("run")), course(&world.path("on")));
    for phase in [Phase::Stage1, Phase::Stage2] {
        let (before, on) = (before.curve(phase, "loss"), on.curve(phase, "loss"));
        assert_eq!(before.len(), on.len());
        // The same pairs in the same order: the first step tells that the weights are others.
        assert!(on[0] < before[0], "{phase}: {on:?} behind {before:?}");
    }
}

#[test]
fn what_a_stage_cannot_start_from_is_refused_by_name() {
    let world = published();
    let refused = |sets: &[&str]| Launch { sets, ..world.run("refused") }.end();
    assert_refused(&refused(&["stage1.steps=0"]), &["stage1.steps", "stage1.from"]);
    assert_refused(
        &refused(&["stage1.from=weights"]),
        &["weights weights: is no checkpoint", "blip2 import"],
    );
    let narrow = refused(&[UNTRAINED[0], UNTRAINED[1], "model.qformer.num_query_tokens=5"]);
    assert_refused(&narrow, &["weights imported", "query_tokens is [1, 4, 32], wanted [1, 5, 32]"]);
    let stage2 = newest(&world, "run/checkpoints/stage2");
    let from = format!("stage1.from={}", stage2.display());
    assert_refused(&refused(&[&from]), &["step-00000006", "embeddings.word_embeddings.weight is missing"]);
}

#[test]
fn a_stage_1_of_hugging_faces_is_enough_for_stage_2() {
    let world = published();
    let path = world.path("imported/bridge/model.safetensors");
    let mut tensors = checkpoint::read_safetensors(&path).unwrap();
    tensors.retain(|name, _| name != "temperature" && !name.starts_with("cls.predictions."));
    checkpoint::write_safetensors(&path, &tensors, &Default::default()).unwrap();
    let ended = Launch { sets: &UNTRAINED, ..world.run("from") }.done();
    assert!(ended.stderr.contains("imported has no temperature and no LM head"), "{}", ended.stderr);
    let [own, from] = ["run", "from"].map(|run| course(&world.path(run)).curve(Phase::Stage2, "loss"));
    assert_eq!(own, from);
}
