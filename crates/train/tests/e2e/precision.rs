//! Half precision, of the trainable part and of the frozen ones, changes digits and nothing else.

use crate::common::{Launch, TinyWorld, first_gradients, records};
use monitor::{METRICS_FILE, Phase, StepRecord};

const SETS: [&str; 7] = [
    "model.qformer.dropout=0.0",
    "stage1.steps=10",
    "stage1.optim.warmup_steps=0",
    "stage1.validate_every_steps=0",
    "stage2.steps=10",
    "stage2.optim.warmup_steps=0",
    "evaluation.max_captions=2",
];

/// Records of both stages with these settings, dropout off.
fn run(world: &TinyWorld, run: &str, sets: &[&str]) -> Vec<StepRecord> {
    let all: Vec<&str> = SETS.iter().chain(sets).copied().collect();
    Launch { ranks: 1, sets: &all, ..world.run(run) }.done();
    records(&world.path(run).join(METRICS_FILE))
}

/// The losses of a phase.
fn losses(records: &[StepRecord], phase: Phase) -> Vec<f64> {
    records.iter().filter(|record| record.phase == phase).map(|record| record.losses["loss"]).collect()
}

#[test]
fn half_precision_stays_beside_single() {
    let world = TinyWorld::new();
    let single = run(&world, "fp32", &[]);
    let half = [
        ("bf16", vec!["run.compute_dtype=bf16"]),
        ("fp16", vec!["run.compute_dtype=fp16"]),
        ("frozen_fp16", vec!["model.vision.dtype=fp16", "model.language.dtype=fp16"]),
        ("mixed", vec!["run.compute_dtype=fp16", "model.vision.dtype=fp32", "model.language.dtype=bf16"]),
    ];
    for (name, sets) in half {
        let found = run(&world, name, &sets);
        for phase in [Phase::Stage1, Phase::Stage2] {
            let (found, near) = (losses(&found, phase), losses(&single, phase));
            assert_ne!(found, near, "{name} must have computed in another precision");
            // Later losses need not be near: hard negatives that nearly tie are drawn otherwise.
            assert!((found[0] - near[0]).abs() <= 0.02 * near[0], "{name}: {found:?}, in fp32 {near:?}");
            assert!(found[9] < found[0], "{name} learns: {found:?}");
        }
        let norms: Vec<f64> = found.iter().filter_map(|record| record.grad_norm).collect();
        // fp16 begins with a scale that is too large, and halves it: a few steps have no gradient.
        assert!(norms.len() >= 10 && norms.iter().all(|norm| *norm < 100.0), "{name}: {norms:?}");
    }
}

/// Weights are cast in two passes of a step, first without a graph, and every one must learn as in one pass.
#[test]
fn a_cached_contrast_in_half_precision_loses_no_gradient() {
    let world = TinyWorld::new();
    let one_step = ["run.compute_dtype=bf16", "stage1.steps=1", "stage2.steps=1"];
    run(&world, "whole", &one_step);
    let cached = ["stage1.micro_batch=4", "stage1.contrastive_accumulation=cached"];
    run(&world, "cached", &[&one_step[..], &cached].concat());
    let gradients = |run: &str| first_gradients(&world.path(run), Phase::Stage1);
    let (whole, cached) = (gradients("whole"), gradients("cached"));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    // All texts are nearly alike at the start: 8 bits give no gradient of what projects them.
    for (name, whole) in whole.iter().filter(|(name, _)| !name.starts_with("text_projection.")) {
        let apart = norm(&mut whole.iter().zip(&cached[name]).map(|(a, b)| a - b));
        let all = norm(&mut whole.iter().copied());
        // That of a key's bias is zero but for rounding.
        assert!(apart <= 0.1 * all + 2e-4, "{name}: {apart} of {all}");
    }
    for name in ["vision_projection.weight", "qformer.encoder.layer.0.output_query.dense.weight"] {
        assert!(norm(&mut whole[name].iter().copied()) > 1e-2, "{name} has a gradient to lose");
    }
}
