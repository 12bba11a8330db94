//! Gradient checkpointing of the frozen language models changes memory and time, and no number.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use common::Case;
use model::language::{LanguageConfig, LanguageModel};
use model::{LmText, TextInput, Weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Reduction, Tensor};

const WORDS: i64 = 60;

/// A model of a reference case, whose weights are large on purpose.
fn open(name: &str, kind: Kind) -> LanguageModel {
    let case = Case::open(name);
    let mut tensors = case.tensors("weights");
    let config = match case.toml.get("t5") {
        Some(sizes) => {
            tensors.retain(|name, _| name.starts_with("t5_model."));
            let mut config = serde_json::to_value(sizes).unwrap();
            config["model_type"] = "t5".into();
            config.to_string()
        }
        None => case.text("config.json"),
    };
    let config = LanguageConfig::from_hf_json(&config).unwrap();
    let mut weights = Weights::new(tensors);
    let model = LanguageModel::new(&config, &mut weights, kind, Device::Cpu);
    weights.finish().unwrap();
    model
}

/// Something read and a text behind it, both of several lengths.
struct Input {
    before: Tensor,
    mask: Tensor,
    text: LmText,
}

fn input(width: i64, [batch, read, said]: [i64; 3]) -> Input {
    tch::manual_seed(4);
    let options = (Kind::Int64, Device::Cpu);
    let mask = Tensor::arange(read, options).unsqueeze(0);
    let lengths = Tensor::arange(batch, options).unsqueeze(1).remainder(3);
    let mask = mask.lt_tensor(&(read - lengths)).to_kind(Kind::Int64);
    let rows: Vec<Vec<i64>> =
        (0..batch).map(|row| (0..said - row % 4).map(|i| (7 * row + 5 * i) % WORDS).collect()).collect();
    let prefix = TextInput::padded(&vec![Vec::new(); batch as usize], 0);
    Input {
        before: Tensor::randn([batch, read, width], (Kind::Float, Device::Cpu)),
        mask,
        text: LmText::padded(&rows, 0, 0).behind(prefix),
    }
}

fn loss(model: &LanguageModel, input: &Input, before: &Tensor) -> Tensor {
    let states = model.read(before, &input.mask, &input.text).predicting;
    let logits = model.logits(&states).flatten(0, 1);
    let labels = input.text.labels.flatten(0, 1);
    logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, LmText::IGNORED, 0.0)
}

/// The loss, and its gradient by what was read.
fn step(model: &LanguageModel, input: &Input) -> [Tensor; 2] {
    let before = input.before.copy().set_requires_grad(true);
    let loss = loss(model, input, &before);
    loss.backward();
    [loss.detach(), before.grad()]
}

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
