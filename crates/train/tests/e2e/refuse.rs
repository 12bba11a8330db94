//! What cannot run says so once, names file and key, and leaves with the exit code of its kind.

use std::fs;
use std::path::Path;

use crate::common::{Ended, Launch, TinyWorld, course, pictures, write_shard};
use monitor::Phase;
use nix::sys::signal::Signal;

/// Ended with `code`, and exactly one line of what was said holds all of `parts`.
fn assert_says(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    let lines = ended.stderr.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    assert_eq!(lines.count(), 1, "lines with {parts:?} in: {}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// A launch with one value changed is refused as a wrong config is.
fn assert_refused(world: &TinyWorld, set: &str, parts: &[&str]) {
    assert_says(&Launch { sets: &[set], ..world.run("refused") }.end(), 78, parts);
}

/// The config with `from` replaced, launched.
fn edited(world: &TinyWorld, from: &str, to: &str) -> Ended {
    let text = fs::read_to_string(world.path("config.toml")).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    fs::write(world.path("edited.toml"), text.replace(from, to)).unwrap();
    Launch { config: "edited.toml", ..world.run("refused") }.end()
}

fn line_of(world: &TinyWorld, text: &str) -> String {
    let config = fs::read_to_string(world.path("config.toml")).unwrap();
    format!("line {}", 1 + config.lines().position(|line| line == text).unwrap())
}

#[test]
fn a_wrong_config_is_refused_with_key_line_and_remedy() {
    let world = TinyWorld::new();
    let typo = edited(&world, "checkpoint_every_steps = 4", "checkpoint_every_step = 4");
    assert_says(&typo, 78, &["edited.toml", &line_of(&world, "checkpoint_every_steps = 4")]);
    assert_says(&typo, 78, &["did you mean `checkpoint_every_steps`?"]);
    let mistyped = edited(&world, "seed = 7", "seed = \"seven\"");
    assert_says(&mistyped, 78, &["edited.toml", &line_of(&world, "seed = 7")]);
    assert_says(&mistyped, 78, &["invalid type: string \"seven\", expected u64"]);

    let missing = Launch { config: "nowhere.toml", ..world.run("refused") }.end();
    assert_says(&missing, 78, &["nowhere.toml cannot be read", "No such file"]);
    assert_refused(
        &world,
        "stage1.optim.peak_l=1",
        &["config.toml", "stage1.optim", "unknown field `peak_l`", "did you mean `peak_lr`?"],
    );
    assert_refused(
        &world,
        "stage1.global_batch=7",
        &["config.toml", "stage1.global_batch = 7", "2 ranks", "change"],
    );
    let remedies = ["config.toml", "leave out stage1.micro_batch", "contrastive_accumulation = \"cached\""];
    assert_refused(&world, "stage1.micro_batch=3", &remedies);
    let nothing = ["config.toml", "stage2.contrastive_accumulation must be \"none\""];
    assert_refused(&world, "stage2.contrastive_accumulation=cached", &nothing);
    assert!(!world.path("features").exists(), "nothing was computed for nothing");
}

#[test]
fn values_that_no_model_can_have_are_refused_before_anything_is_loaded() {
    let world = TinyWorld::new();
    assert_refused(
        &world,
        "data.transform.image_size=56",
        &["data.transform.image_size = 56", "img_size = 28"],
    );
    assert_refused(
        &world,
        "data.max_text_tokens=99",
        &["weights/bert/config.json", "data.max_text_tokens is 99"],
    );
    let alone = Launch { ranks: 1, sets: &["stage1.global_batch=1"], ..world.run("refused") }.end();
    assert_says(&alone, 78, &["config.toml", "stage1.global_batch must be at least 2"]);
    let sizes = "model.qformer.bert={ hidden_size = 32, num_hidden_layer = 2 }";
    assert_refused(&world, sizes, &["unknown field `num_hidden_layer`", "did you mean `num_hidden_layers`?"]);
}

#[test]
fn a_set_may_supply_what_the_file_lacks() {
    let world = TinyWorld::new();
    let lacking = edited(&world, "seed = 7\n", "");
    assert_says(&lacking, 78, &["edited.toml", "missing field `seed`"]);
    let quick =
        ["stage1.steps=1", "stage1.optim.warmup_steps=1", "stage2.steps=1", "stage2.optim.warmup_steps=1"];
    let supplied = [&quick[..], &["run.seed=7"]].concat();
    Launch { config: "edited.toml", sets: &supplied, ..world.run("supplied") }.done();
    // Another key does not hide what is missing, nor where.
    let other = Launch { config: "edited.toml", sets: &quick, ..world.run("refused") }.end();
    assert_says(&other, 78, &["edited.toml", "missing field `seed`"]);
}

#[test]
fn missing_and_foreign_files_are_named() {
    let world = TinyWorld::new();
    let shards = "data.train=[\"shards/train-000000.tar\", \"shards/train-000007.tar\"]";
    assert_refused(&world, shards, &["shard shards/train-000007.tar does not exist"]);
    fs::write(world.path("shards/text.tar"), "no tar").unwrap();
    assert_refused(&world, "data.train=[\"shards/text.tar\"]", &["shards/text.tar: shard_not_tar"]);
    // Beside good ones it is one problem of many samples, and one shard of few.
    let lost = Launch { sets: &["data.train=[\"shards/t*.tar\"]"], ..world.run("lost") }.end();
    assert_says(&lost, 93, &["1 of 3 shards", "max_skipped_ratio 0.01", "shards/text.tar: shard_not_tar"]);
    for (key, file) in [
        ("model.vision.weights=weights/none", "weights/none"),
        ("model.qformer.init=weights/none", "weights/none/vocab.txt"),
        ("model.language.weights=weights/none", "weights/none/config.json"),
    ] {
        assert_refused(&world, key, &[file, "No such file"]);
    }
    for folder in ["vit", "bert", "llama"] {
        fs::rename(world.path(&format!("weights/{folder}/model.safetensors")), world.path("away")).unwrap();
        let ended = world.run("refused").end();
        assert_says(
            &ended,
            78,
            &[&format!("weights/{folder}: holds none of model.safetensors"), "blip2 import"],
        );
        fs::rename(world.path("away"), world.path(&format!("weights/{folder}/model.safetensors"))).unwrap();
    }
}

#[test]
fn weights_that_lack_a_tensor_are_refused_by_its_name() {
    let world = TinyWorld::new();
    for (folder, tensor) in [
        ("vit", "encoder.layer.1.mlp.fc2.weight"),
        ("bert", "encoder.layer.0.intermediate.dense.bias"),
        ("llama", "model.layers.1.mlp.down_proj.weight"),
    ] {
        let path = world.path(&format!("weights/{folder}/model.safetensors"));
        let whole = fs::read(&path).unwrap();
        let mut tensors = checkpoint::read_safetensors(&path).unwrap();
        tensors.remove(tensor).unwrap();
        checkpoint::write_safetensors(&path, &tensors, &Default::default()).unwrap();
        let name = format!("weights/{folder}");
        assert_says(&world.run("refused").end(), 78, &[&name, "missing", tensor]);
        fs::write(&path, whole).unwrap();
    }
}

/// Cuts the first `count` pictures of the first training shard in half.
fn damage(world: &TinyWorld, count: usize) {
    let mut pictures = pictures();
    for picture in &mut pictures[..count] {
        picture.png.truncate(picture.png.len() / 2);
    }
    write_shard(&world.path("shards/train-000000.tar"), &pictures[..crate::common::TRAIN_PICTURES / 2]);
}

#[test]
fn damaged_pictures_are_counted_and_too_many_end_the_run() {
    let world = TinyWorld::new();
    damage(&world, 2);
    let quick = ["stage1.steps=2", "stage2.steps=2"];
    let ended = Launch { sets: &quick, ..world.run("few") }.done();
    let counted = "2 of 48 samples left out: shards/train-000000.tar: image_corrupt 2";
    assert_says(&ended, 0, &["warning", counted]);
    let page = fs::read_to_string(world.path("few/report.html")).unwrap();
    assert!(page.contains(counted), "the report does not tell");
    assert!(page.contains("46 training pairs"), "the report counts them");

    damage(&world, 3);
    let ended = Launch { max_restarts: 3, sets: &quick, ..world.run("many") }.end();
    assert_says(
        &ended,
        93,
        &["3 of 48 samples", "max_skipped_ratio 0.01", "shards/train-000000.tar: image_corrupt 3"],
    );
    assert!(!ended.stderr.contains("starting all ranks again"), "{}", ended.stderr);
}

#[test]
fn a_busy_run_folder_is_left_alone() {
    let world = TinyWorld::new();
    let launch = Launch { sets: &["stage1.steps=100000"], ..world.run("run") };
    let mut first = launch.start();
    first.wait_for_step(Phase::Stage1, 1);
    let second = launch.end();
    assert_says(&second, 73, &["run folder run is in use by process"]);
    assert!(second.seconds < 5.0, "{} s", second.seconds);
    first.signal(Signal::SIGTERM);
    let first = first.end();
    assert_eq!(first.code, Some(75), "{}", first.stderr);
    let steps = course(&world.path("run")).steps(Phase::Stage1);
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "undisturbed");
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_only_damaged_ones_are_refused() {
    let world = TinyWorld::new();
    world.run("run").done();
    let before = course(&world.path("run"));
    let forget_the_end = || fs::remove_file(world.path("run/report.html")).unwrap();
    let saved = || checkpoint::list(&world.path("run/checkpoints/stage2")).unwrap();
    // How many steps the one before has is the disk's to say: a save that finds another in flight is left out.
    let (older, newest) = match saved().as_slice() {
        [.., older, newest] => (older.step, newest.path.join("model.safetensors")),
        other => panic!("two are kept: {other:?}"),
    };
    flip_last_byte(&newest);
    forget_the_end();
    let again = world.run("run").done();
    assert_says(&again, 0, &["warning", "stage2/step-00000006/model.safetensors"]);
    assert_says(&again, 0, &[&format!("stage2: 6 steps, {older} of them done")]);
    course(&world.path("run")).assert_same(&before, "after going back");

    let saved = saved();
    for listed in &saved {
        flip_last_byte(&listed.path.join("optimizer.safetensors"));
    }
    forget_the_end();
    let refused = world.run("run").end();
    let names: Vec<String> = saved.iter().map(|listed| format!("step-{:08}", listed.step)).collect();
    let mut parts = vec!["no valid checkpoint in run/checkpoints/stage2"];
    parts.extend(names.iter().map(String::as_str));
    assert_says(&refused, 78, &parts);
}
