//! The size of a micro-batch is a matter of memory: it changes no gradient.

use crate::common::{Course, Launch, TinyWorld, course};
use monitor::Phase;

const STEPS: usize = 12;
/// Single precision sums in another order.
const TOLERANCE: f64 = 1e-4;

/// One rank, without dropout: each micro-batch draws its own.
const SETS: [&str; 7] = [
    "model.qformer.dropout=0.0",
    "stage1.steps=2",
    "stage1.validate_every_steps=0",
    "stage2.steps=12",
    "evaluation.max_captions=2",
    "evaluation.rerank_candidates=2",
    "data.features.views=0",
];

fn in_micro_batches(world: &TinyWorld, run: &str, pairs: usize) -> Course {
    let micro_batch = format!("stage2.micro_batch={pairs}");
    let mut sets = SETS.to_vec();
    sets.push(&micro_batch);
    Launch { ranks: 1, sets: &sets, ..world.run(run) }.done();
    course(&world.path(run))
}

#[test]
fn stage_2_learns_the_same_in_micro_batches_of_any_size() {
    let world = TinyWorld::new();
    world.use_captions_of_all_lengths();
    let whole = in_micro_batches(&world, "whole", 12);
    for pairs in [1, 4] {
        let parts = in_micro_batches(&world, &format!("by_{pairs}"), pairs);
        for name in ["loss_lm", "grad_norm"] {
            let (one, many) = (whole.curve(Phase::Stage2, name), parts.curve(Phase::Stage2, name));
            assert_eq!((one.len(), many.len()), (STEPS, STEPS));
            for (step, (a, b)) in one.iter().zip(&many).enumerate() {
                assert!((a - b).abs() <= TOLERANCE * a.max(1.0), "{name}, step {step}: {a}, by {pairs} {b}");
            }
        }
    }
}

/// With dropout, so that the second pass over a part must drop what the first one dropped, after a restart too.
#[test]
fn a_killed_run_with_a_cached_contrast_goes_on_bit_for_bit() {
    let world = TinyWorld::new();
    let sets = ["stage1.micro_batch=2", "stage1.contrastive_accumulation=cached", "stage2.steps=2"];
    let run = |name| Launch { sets: &sets, ..world.run(name) };
    run("whole").done();
    let mut running = run("killed").start();
    running.wait_for_step(Phase::Stage1, 6);
    running.kill_rank(1);
    assert_ne!(running.end().code, Some(0));
    run("killed").done();
    course(&world.path("whole")).assert_same(&course(&world.path("killed")), "killed");
}
