//! The size of a micro-batch is a matter of memory: it changes no gradient.

mod common;

use common::{Course, Launch, TRAIN_PICTURES, TinyWorld, course, pictures, write_shard};
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

/// Captions of one, two and three words.
fn captions_of_all_lengths(world: &TinyWorld) {
    let mut pictures = pictures();
    for (number, picture) in pictures.iter_mut().enumerate() {
        let words: Vec<&str> = picture.caption.split(' ').collect();
        picture.caption = words[number % 3..].join(" ");
    }
    let (first, second) = pictures[..TRAIN_PICTURES].split_at(TRAIN_PICTURES / 2);
    write_shard(&world.path("shards/train-000000.tar"), first);
    write_shard(&world.path("shards/train-000001.tar"), second);
}

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
    captions_of_all_lengths(&world);
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
