//! Stage 2 through an encoder-decoder: captions are split, the encoder reads their beginnings, the decoder learns the rest.

use std::fs;

use crate::common::{
    Course, Launch, TRAIN_PICTURES, TinyWorld, blip2, course, pictures, write_flan, write_shard,
};
use monitor::{EvalFile, Phase};

/// Stage 1 is as in any other run, and short here.
const SETS: [&str; 6] = [
    "model.language.weights=weights/t5",
    "model.language.max_new_tokens=8",
    "stage1.steps=2",
    "stage1.validate_every_steps=0",
    "stage2.steps=30",
    "stage2.checkpoint_every_steps=4",
];

/// Captions of one, three and six words: "circle", "small red circle", "a picture of small red circle".
fn world() -> TinyWorld {
    let world = TinyWorld::new();
    let mut pictures = pictures();
    for (number, picture) in pictures.iter_mut().enumerate() {
        match number % 4 {
            0 => picture.caption = picture.caption.rsplit(' ').next().unwrap().to_owned(),
            1 => {}
            _ => picture.caption = format!("a picture of {}", picture.caption),
        }
    }
    let (first, second) = pictures[..TRAIN_PICTURES].split_at(TRAIN_PICTURES / 2);
    write_shard(&world.path("shards/train-000000.tar"), first);
    write_shard(&world.path("shards/train-000001.tar"), second);
    world
}

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&SETS, more].concat()
}

fn loss(course: &Course) -> Vec<f64> {
    course.curve(Phase::Stage2, "loss")
}

/// Captions that the report shows, as stage 2 wrote them.
fn generated(world: &TinyWorld, run: &str) -> Vec<String> {
    let text = fs::read_to_string(world.path(run).join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = report["gallery"].as_array().unwrap();
    items.iter().map(|item| item["generated"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_t5_learns_in_stage_2_and_writes_captions() {
    let world = world();
    let sets = with(&["stage2.steps=150", "stage2.optim.peak_lr=5e-3", "stage2.checkpoint_every_steps=50"]);
    Launch { sets: &sets, ..world.run("run") }.done();
    let losses = loss(&course(&world.path("run")));
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[140..]));
    assert!(last < 0.7 * first, "{first} to {last}: {losses:?}");
    let eval = EvalFile::read(&world.path("run/eval.json")).unwrap();
    assert!(eval.captions.values().all(|scores| scores.count == 8 && scores.cider.is_finite()));
    let captions = generated(&world, "run");
    // Its weights are random and frozen: it learns words, and not to speak.
    assert!(captions.iter().any(|caption| !caption.is_empty()), "{captions:?}");
}

#[test]
fn a_flan_t5_as_the_hub_has_it_learns_and_writes_captions() {
    let world = world();
    write_flan(&world.path("weights/flan"));
    let mut sets =
        with(&["stage2.steps=60", "stage2.optim.peak_lr=5e-3", "stage2.checkpoint_every_steps=60"]);
    sets[0] = "model.language.weights=weights/flan";
    Launch { sets: &sets, ..world.run("run") }.done();
    let losses = loss(&course(&world.path("run")));
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..5]), mean(&losses[55..]));
    assert!(last < first - 0.5, "{first} to {last}: {losses:?}");
    let eval = EvalFile::read(&world.path("run/eval.json")).unwrap();
    assert!(eval.captions.values().all(|scores| scores.count == 8 && scores.cider.is_finite()));
    let captions = generated(&world, "run");
    assert!(captions.iter().any(|caption| !caption.is_empty()), "{captions:?}");
    let framed =
        |caption: &String| ["</s>", "<pad>", "<extra_id", "▁"].iter().any(|mark| caption.contains(mark));
    assert!(!captions.iter().any(framed), "{captions:?}");
}

#[test]
fn a_killed_t5_goes_on_bit_for_bit() {
    let world = world();
    Launch { sets: &SETS, ..world.run("whole") }.done();
    let launch = Launch { sets: &SETS, ..world.run("killed") };
    let mut running = launch.start();
    running.wait_for_step(Phase::Stage2, 6);
    running.kill_rank(1);
    assert_ne!(running.end().code, Some(0));
    launch.done();
    course(&world.path("whole")).assert_same(&course(&world.path("killed")), "killed in stage 2");
    let captions = |run: &str| EvalFile::read(&world.path(run).join("eval.json")).unwrap().captions;
    assert_eq!(captions("whole"), captions("killed"));
}

#[test]
fn captions_are_split_alike_on_any_number_of_ranks() {
    let world = world();
    let sets = with(&["model.qformer.dropout=0.0", "stage2.steps=8"]);
    for (run, ranks) in [("one", 1), ("two", 2)] {
        Launch { ranks, sets: &sets, ..world.run(run) }.done();
    }
    let [one, two] = ["one", "two"].map(|run| loss(&course(&world.path(run))));
    assert_eq!((one.len(), two.len()), (8, 8));
    for (step, (a, b)) in one.iter().zip(&two).enumerate() {
        assert!((a - b).abs() <= 1e-4 * a, "step {step}: {a} and {b}");
    }
}

#[test]
fn recomputed_layers_and_pieces_that_are_words_change_no_bit() {
    let world = world();
    let run = |name: &str, more: &[&'static str]| {
        Launch { ranks: 1, sets: &with(more), ..world.run(name) }.done();
        course(&world.path(name))
    };
    let plain = run("plain", &["stage2.steps=6"]);
    let again = run("again", &["stage2.steps=6", "model.language.gradient_checkpointing=true"]);
    again.assert_same(&plain, "with gradient checkpointing");
    // This tokenizer has one token for each word.
    let tokens = run("tokens", &["stage2.steps=6", "model.language.prefix_split=tokens"]);
    tokens.assert_same(&plain, "split between tokens");
}

#[test]
fn a_decoder_only_model_has_nothing_to_split() {
    let world = world();
    let sets = ["model.language.prefix_split=words"];
    let ended = Launch { sets: &sets, ..world.run("run") }.end();
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    for part in ["weights/llama/config.json", "decoder-only", "leave out model.language.prefix_split"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let arguments = ["plan", "config.toml", "--set", sets[0]];
    let plan = blip2().args(arguments).current_dir(world.path("")).output().unwrap();
    assert_eq!(plan.status.code(), Some(78), "{}", String::from_utf8_lossy(&plan.stderr));
}
