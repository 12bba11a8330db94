//! A whole run through the real programs: what it leaves, what it says, and that it is not repeated.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::{Launch, SPLIT_PICTURES, TinyWorld, blip2, records};
use monitor::{EvalFile, Phase, RecordKind, StepRecord};
use serde_json::Value;
use train::Schedule;

const STAGE1_STEPS: u64 = 12;
const STAGE2_STEPS: u64 = 6;
const GLOBAL_BATCH: u64 = 12;

/// Training phases of the run with their steps.
const PHASES: [(Phase, u64); 3] = [
    (Phase::Stage1, STAGE1_STEPS),
    (Phase::Stage2, STAGE2_STEPS),
    (Phase::Stage2WithoutStage1, STAGE2_STEPS),
];

/// What begins the name of a trainable tensor (the paper: Q-Former, queries, heads and what follows the encoder).
const TRAINABLE: [&str; 8] = [
    "query_tokens",
    "temperature",
    "qformer.",
    "embeddings.",
    "cls.predictions.",
    "itm_head.",
    "vision_model.post_layernorm.",
    "_projection.",
];

fn whole(world: &TinyWorld) -> Launch<'_> {
    Launch { sets: &["evaluation.without_stage1=true"], ..world.run("run") }
}

#[test]
fn a_whole_run_leaves_all_its_files_and_is_not_repeated() {
    let world = TinyWorld::new();
    let first = whole(&world).done();
    let run = world.path("run");
    check_records(&records(&run.join("metrics.jsonl")));
    check_checkpoints(&run);
    check_dashboards(&run);
    check_eval_file(&run);
    assert!(!run.join("failure.json").exists());
    assert!(first.stderr.contains("report: run/report.html"), "{}", first.stderr);

    let metrics = fs::read(run.join("metrics.jsonl")).unwrap();
    let again = whole(&world).done();
    assert!(again.stderr.contains("this run has ended; remove run to start over"), "{}", again.stderr);
    assert!(again.stderr.contains("report: run/report.html"), "{}", again.stderr);
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), metrics, "it trained again");
    assert!(again.seconds < 10.0, "{} s to say that it has ended", again.seconds);
}

/// One record a step, complete, with the learning rate and the bytes that they must have.
fn check_records(records: &[StepRecord]) {
    let steps_of = |phase: Phase, wanted: RecordKind| -> Vec<u64> {
        let those = records.iter().filter(|record| (record.phase, record.kind) == (phase, wanted));
        those.map(|record| record.step).collect()
    };
    for (phase, steps) in PHASES {
        assert_eq!(steps_of(phase, RecordKind::Step), (1..=steps).collect::<Vec<_>>(), "{phase}");
    }
    assert_eq!(steps_of(Phase::Stage1, RecordKind::Validation), [6, 12]);
    assert_eq!(records.len() as u64, STAGE1_STEPS + 2 * STAGE2_STEPS + 2);
    for record in records.iter().filter(|record| record.kind == RecordKind::Step) {
        check_step(record);
    }
    let times: Vec<f64> = records.iter().map(|record| record.time_seconds).collect();
    assert!(times.is_sorted() && times[0] > 0.0, "{times:?}");
}

fn check_step(record: &StepRecord) {
    let names: Vec<&str> = record.losses.keys().map(String::as_str).collect();
    let losses = &record.losses;
    let (expected, steps): (&[&str], u64) = match record.phase {
        Phase::Stage1 => (&["loss", "loss_itc", "loss_itg", "loss_itm"], STAGE1_STEPS),
        _ => (&["loss", "loss_lm"], STAGE2_STEPS),
    };
    assert_eq!(names, expected);
    assert!(losses.values().all(|loss| loss.is_finite() && *loss > 0.0), "{losses:?}");
    let parts: f64 = losses.iter().filter(|(name, _)| *name != "loss").map(|(_, loss)| loss).sum();
    assert!((losses["loss"] - parts).abs() < 1e-5, "{losses:?}");
    let schedule = Schedule { peak_lr: 1e-3, min_lr: 1e-4, warmup_steps: 2, steps };
    assert_eq!(record.lr, Some(schedule.lr(record.step - 1)));
    assert!(record.grad_norm.is_some_and(|norm| norm.is_finite() && norm > 0.0), "{record:?}");
    assert_eq!(record.pairs_seen, record.step * GLOBAL_BATCH);
    assert!(record.pairs_per_second > 0.0 && record.step_seconds > 0.0, "{record:?}");
    assert!((0.0..=record.step_seconds).contains(&record.comm_seconds), "{record:?}");
    assert!(record.peak_memory_bytes > 1 << 20, "{record:?}");
}

/// Each phase's checkpoints are whole, hold trainable tensors alone, and a step reduced just those.
fn check_checkpoints(run: &Path) {
    let records = records(&run.join("metrics.jsonl"));
    for (phase, steps) in PHASES {
        let dir = run.join("checkpoints").join(phase.name());
        let kept = checkpoint::list(&dir).unwrap();
        assert_eq!(kept.last().unwrap().step, steps, "{phase}");
        assert!((2..=3).contains(&kept.len()), "two, and the best one: {kept:?}");
        assert_eq!(checkpoint::pinned(&dir).unwrap().is_some(), phase == Phase::Stage1);
        for listed in kept {
            let (manifest, snapshot) = checkpoint::load(&listed.path).unwrap();
            assert_eq!((manifest.step, manifest.phase.as_str()), (listed.step, phase.name()));
            let frozen = |name: &&String| {
                !TRAINABLE
                    .iter()
                    .any(|part| name.starts_with(part) || part.starts_with('_') && name.contains(part))
            };
            assert_eq!(
                snapshot.model.keys().find(frozen),
                None,
                "a frozen tensor is in {phase}'s checkpoint"
            );
            assert!(snapshot.config.contains("[stage1.optim]"), "{}", snapshot.config);
            let trainable: usize = snapshot.model.values().map(checkpoint::HostTensor::numel).sum();
            for record in records.iter().filter(|r| (r.phase, r.kind) == (phase, RecordKind::Step)) {
                assert_eq!(record.bytes_reduced, 4 * trainable as u64, "{phase}");
            }
        }
    }
}

fn check_dashboards(run: &Path) {
    let events: Vec<_> =
        fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(events.len(), 1, "{events:?}");
    let bytes = fs::read(&events[0]).unwrap();
    for tag in ["stage1/loss_itc", "stage1/loss_itm", "stage1/loss_itg", "stage2/loss_lm"] {
        let found = bytes.windows(tag.len()).filter(|window| *window == tag.as_bytes()).count() as u64;
        let steps = if tag.starts_with("stage1") { STAGE1_STEPS } else { STAGE2_STEPS };
        assert_eq!(found, steps, "{tag}");
    }
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    for part in ["<title>tiny", "held_out", "CIDEr", "data:image/png;base64,"] {
        assert!(page.contains(part), "report.html lacks {part}");
    }
    for file in ["report.json", "config.toml", "logs/rank-0.log", "logs/rank-1.log"] {
        assert!(run.join(file).is_file(), "{file}");
    }
}

/// Keys of `eval.json` as `docs/eval.md` writes them.
fn documented() -> BTreeSet<String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/eval.md");
    let text = fs::read_to_string(document).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

/// Dotted paths of all numbers below `value`, with names of splits and phases replaced by what they are.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Value::Object(map) = value else {
        assert!(value.is_number(), "{path} is {value}");
        found.insert(path.to_owned());
        return;
    };
    for (key, inner) in map {
        let name = match key.as_str() {
            "val" | "held_out" => "<split>",
            "i2t" | "t2i" => "<way>",
            "r1" | "r5" | "r10" => "<k>",
            "features" | "stage1" | "stage2" | "stage2_without_stage1" | "evaluation" => "<phase>",
            other => other,
        };
        let separator = if path.is_empty() { "" } else { "." };
        paths(inner, &format!("{path}{separator}{name}"), found);
    }
}

fn check_eval_file(run: &Path) {
    let value: Value = serde_json::from_slice(&fs::read(run.join("eval.json")).unwrap()).unwrap();
    let mut found = BTreeSet::new();
    paths(&value, "", &mut found);
    assert_eq!(found, documented());
    let eval = EvalFile::read(&run.join("eval.json")).unwrap();
    for split in ["val", "held_out"] {
        assert_eq!(eval.candidates[split], SPLIT_PICTURES as u64);
        let (scores, captions) = (eval.retrieval[split], &eval.captions[split]);
        for recalls in [scores.itc.i2t, scores.itc.t2i, scores.itm.i2t, scores.itm.t2i] {
            assert!(0.0 <= recalls.r1 && recalls.r1 <= recalls.r5, "{recalls:?}");
            assert!(recalls.r5 <= recalls.r10 && recalls.r10 <= 1.0, "{recalls:?}");
        }
        assert_eq!(captions.count, 8);
        assert!(
            (0.0..=10.0).contains(&captions.cider) && (0.0..=1.0).contains(&captions.exact),
            "{captions:?}"
        );
    }
    let phases: Vec<Phase> = eval.seconds.keys().copied().collect();
    let [stage1, stage2, control] = PHASES.map(|(phase, _)| phase);
    assert_eq!(phases, [Phase::Features, stage1, stage2, control, Phase::Evaluation]);
    assert_eq!(eval.pairs_per_second.keys().copied().collect::<Vec<_>>(), [stage1, stage2, control]);
    for (phase, rate) in &eval.pairs_per_second {
        let pairs = GLOBAL_BATCH * PHASES.iter().find(|(of, _)| of == phase).unwrap().1;
        assert!((rate * eval.seconds[phase] / pairs as f64 - 1.0).abs() < 1e-9, "{phase}: {rate}");
    }
    assert!(eval.peak_rss_bytes > 1 << 20);
}

#[test]
fn the_plan_tells_what_a_step_will_reduce() {
    let world = TinyWorld::new();
    let plan = blip2().args(["plan", "config.toml"]).current_dir(world.path("")).output().unwrap();
    assert!(plan.status.success());
    let text = String::from_utf8(plan.stdout).unwrap();
    assert!(text.contains("stage1: 12 steps x 12 pairs"), "{text}");
    let cached = ["--set", "stage1.micro_batch=3", "--set", "stage1.contrastive_accumulation=cached"];
    let plan =
        blip2().args(["plan", "config.toml"]).args(cached).current_dir(world.path("")).output().unwrap();
    let cached = String::from_utf8(plan.stdout).unwrap();
    assert!(cached.contains("x 2 ranks x 2 micro-steps), contrast batch 12 (cached"), "{cached}");
    assert!(!world.path("run").exists() && !world.path("features").exists(), "a plan is only words");
    let line =
        text.lines().find(|line| line.contains("trainable parameters")).expect("a line with parameters");
    let parameters: u64 =
        line.split_whitespace().find_map(|word| word.replace(',', "").parse().ok()).expect("a number");

    Launch {
        ranks: 1,
        sets: &["stage1.steps=2", "stage2.steps=2", "evaluation.max_captions=2"],
        ..world.run("run")
    }
    .done();
    let records = records(&world.path("run/metrics.jsonl"));
    assert_eq!(records[0].bytes_reduced, 4 * parameters, "{line}");
}

#[test]
fn numerics_are_verified_from_the_command_line() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/stage1_eva");
    let verified = blip2().arg("verify").arg(case).output().unwrap();
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&verified.stderr));
    assert!(text.contains("stage1_eva"), "{text}");
}
