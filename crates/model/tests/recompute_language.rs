//! Gradient checkpointing of the frozen language models changes memory and time, and no number.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;
mod reading;

use model::Weights;
use model::language::{LanguageConfig, LanguageModel};
use reading::{Input, WORDS, input, loss, open, step};
use serde_json::{Value, json};
use tch::{Device, Kind};

#[test]
fn recomputed_language_models_give_the_same_loss_and_gradient() {
    for name in ["language_opt", "language_opt_post_norm", "language_llama", "stage2_t5"] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let kept = open(name, kind);
            let input = input(kept.hidden_size(), [5, 6, 7]);
            let kept = step(&kept, &input);
            let again = step(&open(name, kind).with_gradient_checkpointing(true), &input);
            for (what, (one, two)) in ["loss", "gradient"].into_iter().zip(kept.iter().zip(&again)) {
                let largest = one.abs().max().double_value(&[]);
                let apart = (one - two).abs().max().double_value(&[]);
                assert!(largest > 1e-4, "{name}: no {what}");
                assert!(apart <= 1e-6 * largest, "{name} in {kind:?}: {what} {apart:e} apart of {largest}");
            }
        }
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// What a forward pass keeps for the backward pass: kept as it is, and with layers that are computed again.
fn kept_bytes(config: &Value) -> (i64, i64) {
    // Each thread has memory of its own.
    tch::set_num_threads(1);
    let config = LanguageConfig::from_hf_json(&config.to_string()).unwrap();
    let model = LanguageModel::new(&config, &mut Weights::random(), Kind::Float, Device::Cpu);
    let [small, input] = [[1, 2, 4], [8, 48, 40]].map(|sizes| input(model.hidden_size(), sizes));
    let grown = |model: &LanguageModel, input: &Input| {
        let before = input.before.copy().set_requires_grad(true);
        let empty = resident();
        let loss = loss(model, input, &before);
        let grown = resident() - empty;
        loss.backward();
        assert!(before.grad().abs().max().double_value(&[]) > 0.0);
        grown
    };
    // What the libraries allocate once for themselves is not counted. What frees little comes first: memory that was freed is
    // used again, and would hide what the other keeps.
    grown(&model, &small);
    let model = model.with_gradient_checkpointing(true);
    let again = grown(&model, &input);
    (grown(&model.with_gradient_checkpointing(false), &input), again)
}

fn assert_saves(config: &Value) {
    let (kept, again) = kept_bytes(config);
    println!("{}: {kept} bytes kept, {again} with recomputation", config["model_type"]);
    assert!(kept > 30 << 20 && 3 * again < kept, "{kept} bytes kept, {again} with recomputation");
}

#[test]
fn a_recomputed_opt_keeps_a_fraction() {
    assert_saves(&json!({
        "model_type": "opt", "vocab_size": WORDS, "hidden_size": 128, "num_hidden_layers": 24, "ffn_dim": 512,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    }));
}

#[test]
fn a_recomputed_llama_keeps_a_fraction() {
    assert_saves(&json!({
        "model_type": "llama", "vocab_size": WORDS, "hidden_size": 128, "num_hidden_layers": 24,
        "intermediate_size": 384, "num_attention_heads": 4, "tie_word_embeddings": true,
    }));
}

#[test]
fn a_recomputed_t5_keeps_a_fraction() {
    assert_saves(&json!({
        "model_type": "t5", "vocab_size": WORDS, "d_model": 128, "d_kv": 32, "d_ff": 384, "num_layers": 16,
        "num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
    }));
}
