//! The real program on the command line: what it accepts, whom it asks, which exit code it gives.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod place;

use std::fs;
use std::path::PathBuf;

use checkpoint::{HostTensor, Snapshot, Store};
use place::{Place, run};

#[test]
fn help_names_every_command_and_exit_code() {
    let (code, help, _) = run(&mut Place::without_worker().command(&["--help"]));
    assert_eq!(code, Some(0));
    for word in [
        "launch", "resume", "plan", "verify", "import", "export", "data", "ckpt", "69", "73", "75", "78",
        "93",
    ] {
        assert!(help.contains(word), "{word} is missing from:\n{help}");
    }
    let (_, help, _) = run(&mut Place::without_worker().command(&["launch", "--help"]));
    assert!(help.contains("min(2, cores)") && help.contains("[default: 3]"), "{help}");
}

#[test]
fn arguments_that_are_not_understood_end_with_2_and_start_nothing() {
    let place = Place::with_worker();
    let cases: [(&[&str], &str); 7] = [
        (&["train", "c.toml"], "unrecognized subcommand"),
        (&["launch"], "CONFIG"),
        (&["launch", "--nproc-per-node", "0", "c.toml"], "1 or more, auto or gpu"),
        (&["launch", "--max-restarts", "often", "c.toml"], "--max-restarts"),
        (&["verify"], "CASE"),
        (&["data", "prepare", "coco"], "quickstart"),
        (&["data", "prepare", "quickstart", "--with", "vit,coco"], "tuxpaint"),
    ];
    for (args, word) in cases {
        let (code, _, stderr) = run(&mut place.command(args));
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?} should name {word}: {stderr}");
    }
    assert_eq!(place.asked(), Vec::<String>::new());
}

#[test]
fn a_missing_worker_is_named_with_the_way_to_get_it() {
    let place = Place::without_worker();
    for args in [&["launch", "c.toml"][..], &["plan", "c.toml"], &["verify", "case"]] {
        let (code, _, stderr) = run(&mut place.command(args));
        assert_eq!(code, Some(78), "{args:?}");
        let worker = place.path("blip2-worker");
        assert!(stderr.contains(worker.to_str().unwrap()) && stderr.contains("cargo build"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "one clear line: {stderr}");
    }
}

#[test]
fn a_stop_before_anything_is_started_is_75() {
    let place = Place::with_worker();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/config.toml"), "").unwrap();
    for (args, signal) in
        [(["launch", "c.toml"], "TERM"), (["launch", "c.toml"], "INT"), (["resume", "run"], "USR1")]
    {
        let (code, _, stderr) = run(place.command(&args).env("FAKE_SIGNAL", signal));
        assert_eq!(code, Some(75), "{args:?}, {signal}: {stderr}");
    }
    assert!(place.asked().iter().all(|asked| asked.starts_with("run-dir ")), "{:?}", place.asked());
}

#[test]
fn a_launch_asks_for_the_run_folder_and_starts_the_workers_there() {
    let place = Place::with_worker();
    let args = ["launch", "--nproc-per-node", "2", "--set", "stage1.steps=9", "c.toml", "--set", "a=b c"];
    let (code, stdout, stderr) = run(&mut place.command(&args));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("rank 0 of 2"), "{stdout}");
    let log = fs::read_to_string(place.path("run/logs/rank-1.log")).unwrap();
    assert!(log.contains("rank 1 of 2"), "{log}");
    let rest = "--set stage1.steps=9 --set a=b c -- c.toml";
    assert_eq!(place.asked(), [format!("run-dir {rest}"), format!("train {rest}"), format!("train {rest}")]);
}

#[test]
fn a_dry_run_says_what_it_took_from_where_and_starts_nothing() {
    let place = Place::with_worker();
    let mut command = place.command(&["launch", "--dry-run", "c.toml"]);
    command.envs([("PET_NNODES", "2"), ("PET_NPROC_PER_NODE", "2"), ("PET_NODE_RANK", "1")]);
    let (code, stdout, stderr) = run(command.env("PET_RDZV_ENDPOINT", "node0:29500"));
    assert_eq!(code, Some(0), "{stderr}");
    for line in
        ["--nnodes 2, from PET_NNODES", "--node-rank 1, from PET_NODE_RANK", "--rdzv node0:29500, from"]
    {
        assert!(stderr.contains(line), "{line}: {stderr}");
    }
    assert!(
        stdout.contains("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1") && stdout.contains("train -- c.toml"),
        "{stdout}"
    );
    assert_eq!(place.asked(), ["run-dir -- c.toml"]);
    assert!(!place.path("run").exists());
}

#[test]
fn several_nodes_need_a_place_to_meet() {
    let place = Place::with_worker();
    let (code, _, stderr) = run(&mut place.command(&["launch", "--nnodes", "2", "c.toml"]));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("--rdzv HOST:PORT"), "{stderr}");
}

#[test]
fn a_refused_config_comes_out_at_once_and_leaves_nothing() {
    let place = Place::with_worker();
    let mut command = place.command(&["launch", "c.toml"]);
    let (code, stdout, stderr) = run(command.env("FAKE_REFUSAL", "c.toml: unknown key"));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(78), "", "blip2: c.toml: unknown key\n"));
    assert_eq!(place.asked(), ["run-dir -- c.toml"]);
    assert!(!place.path("run").exists());
}

#[test]
fn the_exit_code_of_the_workers_is_passed_on() {
    for expected in [69, 73, 75, 78, 93] {
        let place = Place::with_worker();
        let mut command =
            place.command(&["launch", "--max-restarts", "0", "--nproc-per-node", "1", "c.toml"]);
        let (code, _, stderr) = run(command.env("FAKE_EXIT", expected.to_string()));
        assert_eq!(code, Some(expected), "{stderr}");
        let is_failure = expected != 75;
        assert_eq!(stderr.contains(&format!("exited with code {expected}")), is_failure, "{stderr}");
    }
}

#[test]
fn a_libtorch_of_ones_own_is_found_first() {
    let place = Place::with_worker();
    let mut command = place.command(&["launch", "--nproc-per-node", "1", "c.toml"]);
    let (_, stdout, _) = run(command.env("LIBTORCH", "/opt/torch").env("LD_LIBRARY_PATH", "/usr/local/lib"));
    assert!(stdout.contains("libraries in /opt/torch/lib:/usr/local/lib"), "{stdout}");
}

#[test]
fn resume_launches_the_config_of_the_run() {
    let place = Place::with_worker();
    fs::create_dir(place.path("run")).unwrap();
    let (code, _, stderr) = run(&mut place.command(&["resume", "run"]));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("config.toml"), "{stderr}");
    fs::write(place.path("run/config.toml"), "").unwrap();
    let (code, _, stderr) = run(&mut place.command(&["resume", "run", "--nproc-per-node", "1"]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(place.asked(), ["run-dir -- run/config.toml", "train -- run/config.toml"]);
}

#[test]
fn resume_does_not_write_into_another_folder_than_the_named_one() {
    let place = Place::with_worker();
    fs::create_dir_all(place.path("moved")).unwrap();
    fs::write(place.path("moved/config.toml"), "").unwrap();
    let (code, _, stderr) = run(&mut place.command(&["resume", "moved"]));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("run.dir"), "{stderr}");
    assert_eq!(place.asked(), ["run-dir -- moved/config.toml"]);
}

#[test]
fn import_and_export_are_the_workers_to_do() {
    let place = Place::with_worker();
    for args in [
        &["import", "a.pth", "ours"][..],
        &["import", "a.pth", "ours", "--config", "config.json"],
        &["export", "run", "hf", "--to", "hf", "--shard-bytes", "9"],
        &["export", "run", "a.pth", "--to", "lavis", "--whole", "--vision", "v", "--language", "l"],
    ] {
        assert_eq!(run(&mut place.command(args)).0, Some(0), "{args:?}");
    }
    let asked = [
        "import -- a.pth ours",
        "import --config config.json -- a.pth ours",
        "export --to hf --shard-bytes 9 -- run hf",
        "export --to lavis --whole --vision v --language l -- run a.pth",
    ];
    assert_eq!(place.asked(), asked);
    let (code, _, stderr) = run(&mut place.command(&["export", "run", "hf"]));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--to"), "{stderr}");
}

#[test]
fn plan_and_verify_are_the_workers_to_answer() {
    let place = Place::with_worker();
    let (code, stdout, _) =
        run(&mut place.command(&["plan", "c.toml", "--set", "a=1", "--nproc-per-node=4", "--nnodes=2"]));
    assert_eq!((code, stdout.as_str()), (Some(0), "answer to plan\n"));
    let (code, _, _) = run(place.command(&["verify", "x", "y", "--json"]).env("FAKE_EXIT", "1"));
    assert_eq!(code, Some(1));
    assert_eq!(place.asked(), ["plan --world-size 8 --set a=1 -- c.toml", "verify --json -- x y"]);
}

#[test]
fn what_takes_tensors_is_the_workers_to_measure() {
    let place = Place::with_worker();
    let step = ["bench", "step", "c.toml", "--set", "a=1", "--ranks", "4", "--json"];
    for args in [&step[..], &["bench", "allreduce"], &["bench", "allreduce", "--ranks", "3", "--json"]] {
        assert_eq!(run(&mut place.command(args)).0, Some(0), "{args:?}");
    }
    let asked = [
        "bench-step --ranks 4 --pairs 2 --steps 3 --json --set a=1 -- c.toml",
        "bench-allreduce --ranks 2",
        "bench-allreduce --ranks 3 --json",
    ];
    assert_eq!(place.asked(), asked);
    let (code, _, stderr) = run(&mut place.command(&["bench", "allreduce", "--ranks", "1"]));
    assert_eq!(code, Some(2), "one rank has nobody to talk to: {stderr}");
}

/// A run folder with checkpoints of the given stages and steps, the first step of each pinned.
fn saved_run(place: &Place, stages: &[(&str, &[u64])]) -> PathBuf {
    let run = place.path("run");
    for (stage, steps) in stages {
        let store = Store::open(&run.join("checkpoints").join(stage), 9).unwrap();
        for step in *steps {
            let mut snapshot = Snapshot { phase: (*stage).to_owned(), ..Snapshot::default() };
            snapshot.model.insert("query_tokens".into(), HostTensor::from_f32(&[2], &[1.0, 2.0]).unwrap());
            store.save(&snapshot, *step).unwrap();
        }
        store.pin(steps[0]).unwrap();
    }
    run
}

#[test]
fn checkpoints_are_listed_by_stage_with_the_best_one_marked() {
    let place = Place::without_worker();
    saved_run(&place, &[("stage2", &[5]), ("stage1", &[20, 100])]);
    let (code, stdout, _) = run(&mut place.command(&["ckpt", "list", "run"]));
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    for (line, [stage, step]) in
        lines.iter().zip([["stage1", "step 20 "], ["stage1", "step 100 "], ["stage2", "step 5 "]])
    {
        assert!(line.starts_with(stage) && line.contains(step) && line.contains(" MB"), "{line}");
    }
    let best: Vec<bool> = lines.iter().map(|line| line.ends_with("best")).collect();
    assert_eq!(best, [true, false, true]);
}

#[test]
fn a_flipped_bit_is_found() {
    let place = Place::without_worker();
    let run_dir = saved_run(&place, &[("stage1", &[1, 2])]);
    let (code, stdout, _) = run(&mut place.command(&["ckpt", "verify", "run"]));
    assert_eq!((code, stdout.lines().last()), (Some(0), Some("2 whole, 0 damaged")));
    let model = run_dir.join("checkpoints/stage1/step-00000002/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&model, bytes).unwrap();
    let (code, stdout, _) = run(&mut place.command(&["ckpt", "verify", "run"]));
    assert_eq!((code, stdout.lines().last()), (Some(78), Some("1 whole, 1 damaged")));
    assert!(stdout.contains("step 2  DAMAGED") && stdout.contains("model.safetensors"), "{stdout}");
}

#[test]
fn a_folder_without_checkpoints_is_refused() {
    let place = Place::without_worker();
    let (code, _, stderr) = run(&mut place.command(&["ckpt", "list", "nowhere"]));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("nowhere is no run folder"), "{stderr}");
    fs::create_dir_all(place.path("run/checkpoints/stage1")).unwrap();
    let (code, _, stderr) = run(&mut place.command(&["ckpt", "verify", "run"]));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("no checkpoint has been written"), "{stderr}");
}

#[test]
fn data_without_a_place_for_downloads_is_refused() {
    let place = Place::without_worker();
    let mut command = place.command(&["data", "prepare", "quickstart"]);
    let (code, _, stderr) = run(command.env_remove("HOME").env_remove("XDG_CACHE_HOME"));
    assert_eq!(code, Some(78));
    assert!(stderr.contains("XDG_CACHE_HOME"), "{stderr}");
}
