//! N ranks are one rank with N times the batch: the same gradients, and the same losses step by step. So are ranks that
//! compute stage 1 in parts.

use crate::common::{Course, Launch, TinyWorld, course, first_gradients};
use monitor::Phase;

const STEPS: usize = 50;
/// Pairs of all ranks in a step, as the config has it.
const PAIRS: usize = 12;
/// Single precision sums in another order, for [`STEPS`] steps.
const LOSS_TOLERANCE: f64 = 1e-4;
/// The same before there is a step to take.
const GRADIENT_TOLERANCE: f64 = 1e-5;

/// Dropout off, because each rank draws its own; the same pairs in every step.
const SETS: [&str; 6] = [
    "model.qformer.dropout=0.0",
    "stage1.steps=50",
    "stage1.validate_every_steps=0",
    "stage2.steps=50",
    "evaluation.max_captions=2",
    "evaluation.rerank_candidates=2",
];
/// One step that moves nothing, so that stage 2 starts from the same weights, and whose gradient is not scaled down.
const ONE_STEP: [&str; 8] = [
    "stage1.steps=1",
    "stage2.steps=1",
    "stage1.optim.warmup_steps=0",
    "stage2.optim.warmup_steps=0",
    "stage1.optim.peak_lr=0.0",
    "stage1.optim.min_lr=0.0",
    "stage1.optim.max_grad_norm=1e9",
    "stage1.checkpoint_every_steps=1",
];

/// Who shares the work.
#[derive(Clone, Copy, Debug)]
struct Shared {
    ranks: usize,
    /// Forward passes of each rank in a step of stage 1.
    parts: usize,
}

const ALONE: Shared = Shared { ranks: 1, parts: 1 };

fn launch(world: &TinyWorld, run: &str, shared: Shared, more: &[&str]) {
    let a_rank = PAIRS / shared.ranks;
    let stage1 = format!("stage1.micro_batch={}", a_rank / shared.parts);
    let stage2 = format!("stage2.micro_batch={a_rank}");
    let mut sets = [&SETS, more].concat();
    sets.extend([stage1.as_str(), &stage2]);
    if shared.parts > 1 {
        sets.push("stage1.contrastive_accumulation=cached");
    }
    Launch { ranks: shared.ranks, sets: &sets, ..world.run(run) }.done();
}

fn assert_same_losses(one: &Course, many: &Course, shared: Shared) {
    let losses = ["loss", "loss_itc", "loss_itm", "loss_itg"].map(|name| (Phase::Stage1, name));
    let metrics = ["itm_accuracy", "itc_recall", "temperature"].map(|name| (Phase::Stage1, name));
    for (phase, name) in losses.into_iter().chain(metrics).chain([(Phase::Stage2, "loss_lm")]) {
        let (one, many) = (one.curve(phase, name), many.curve(phase, name));
        assert_eq!((one.len(), many.len()), (STEPS, STEPS));
        for (step, (a, b)) in one.iter().zip(&many).enumerate() {
            assert!(
                (a - b).abs() <= LOSS_TOLERANCE,
                "{phase} {name} at step {}: {a} and, with {shared:?}, {b}",
                step + 1
            );
        }
    }
}

/// Both stages, in their first step.
fn assert_same_gradients(world: &TinyWorld, shared: Shared) {
    launch(world, "first", ALONE, &ONE_STEP);
    launch(world, "first_shared", shared, &ONE_STEP);
    for phase in [Phase::Stage1, Phase::Stage2] {
        let (one, many) =
            ["first", "first_shared"].map(|run| first_gradients(&world.path(run), phase)).into();
        assert!(one.keys().eq(many.keys()) && one.len() > 20, "{phase}: {:?}", one.keys());
        let largest = one.values().flatten().fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(largest > 0.01, "{phase}: what is nothing is easily equal");
        for (name, one) in &one {
            for (a, b) in one.iter().zip(&many[name]) {
                let apart = f64::from((a - b).abs());
                assert!(apart <= GRADIENT_TOLERANCE, "{phase}, {name}: {a} and, with {shared:?}, {b}");
            }
        }
    }
}

fn train_as_one_does(shares: &[Shared]) {
    let world = TinyWorld::new();
    world.use_captions_of_all_lengths();
    launch(&world, "one", ALONE, &[]);
    let one = course(&world.path("one"));
    let fell = |name| {
        let curve = one.curve(Phase::Stage1, name);
        curve[STEPS - 1] < 0.9 * curve[0]
    };
    assert!(fell("loss_itg") && fell("loss"), "{one:?}: what does not move is easily equal");
    for (number, &shared) in shares.iter().enumerate() {
        let run = format!("shared_{number}");
        launch(&world, &run, shared, &[]);
        assert_same_losses(&one, &course(&world.path(&run)), shared);
        assert_same_gradients(&world, shared);
        for run in ["first", "first_shared"] {
            std::fs::remove_dir_all(world.path(run)).expect("a run folder");
        }
    }
}

#[test]
fn two_ranks_train_as_one_does_at_once_and_in_cached_parts() {
    train_as_one_does(&[Shared { ranks: 2, parts: 1 }, Shared { ranks: 2, parts: 3 }]);
}

#[test]
fn long_three_and_four_ranks_train_as_one_does() {
    train_as_one_does(&[
        Shared { ranks: 3, parts: 1 },
        Shared { ranks: 4, parts: 1 },
        Shared { ranks: 3, parts: 2 },
        Shared { ranks: 4, parts: 3 },
    ]);
}
