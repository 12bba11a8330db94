//! N ranks are one rank with N times the batch: the same losses, step by step.

mod common;

use common::{Course, Launch, TinyWorld, course};
use monitor::Phase;

const STEPS: usize = 20;
/// Single precision sums in another order.
const TOLERANCE: f64 = 1e-4;

/// Dropout off, because each rank draws its own; the same pairs in every step.
const SETS: [&str; 6] = [
    "model.qformer.dropout=0.0",
    "stage1.steps=20",
    "stage1.validate_every_steps=0",
    "stage2.steps=20",
    "evaluation.max_captions=2",
    "evaluation.rerank_candidates=2",
];

fn with_ranks(world: &TinyWorld, run: &str, ranks: usize, pairs_a_rank: usize) -> Course {
    // Stage 2 does not accumulate here: a mean over micro-steps is not the mean over all their tokens.
    let micro_batch = format!("stage2.micro_batch={pairs_a_rank}");
    let mut sets = SETS.to_vec();
    sets.push(&micro_batch);
    Launch { ranks, sets: &sets, ..world.run(run) }.done();
    course(&world.path(run))
}

fn assert_close(one: &Course, many: &Course, ranks: usize) {
    let losses = ["loss", "loss_itc", "loss_itm", "loss_itg"].map(|name| (Phase::Stage1, name));
    let metrics = ["itm_accuracy", "itc_recall", "temperature"].map(|name| (Phase::Stage1, name));
    for (phase, name) in losses.into_iter().chain(metrics).chain([(Phase::Stage2, "loss_lm")]) {
        let (one, many) = (one.curve(phase, name), many.curve(phase, name));
        assert_eq!((one.len(), many.len()), (STEPS, STEPS));
        for (step, (a, b)) in one.iter().zip(&many).enumerate() {
            assert!(
                (a - b).abs() <= TOLERANCE,
                "{phase} {name} at step {}: {a} and, on {ranks} ranks, {b}",
                step + 1
            );
        }
    }
}

#[test]
fn two_and_three_ranks_train_as_one_does() {
    let world = TinyWorld::new();
    let one = with_ranks(&world, "one", 1, 12);
    let fell = |name| {
        let curve = one.curve(Phase::Stage1, name);
        curve[STEPS - 1] < 0.9 * curve[0]
    };
    assert!(fell("loss_itg") && fell("loss"), "{one:?}: what does not move is easily equal");
    assert_close(&one, &with_ranks(&world, "two", 2, 6), 2);
    assert_close(&one, &with_ranks(&world, "three", 3, 4), 3);
}
