//! A language model of which each rank holds a part gives what the whole one gives, in less memory.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;
mod processes;
mod reading;

use std::fs;
use std::path::Path;

use collectives::{CommError, ProcessGroup, SoloGroup};
use common::greedy;
use model::Weights;
use model::language::{LanguageConfig, LanguageModel};
use processes::{Ranks, Role};
use reading::{case, input, open, step};
use serde_json::json;
use tch::{Device, Kind};

const CASES: [&str; 4] = ["language_opt", "language_opt_post_norm", "language_llama", "stage2_t5"];
const TOLERANCE: f64 = 1e-6;

/// The model of a case, of which this rank holds a part.
fn parted(name: &str, kind: Kind, group: &dyn ProcessGroup) -> LanguageModel {
    let (config, mut weights) = case(name);
    let group = group.beside(&format!("{name} {kind:?}")).unwrap();
    let model = LanguageModel::parted(&config, &mut weights, kind, group);
    weights.finish().unwrap();
    model
}

/// Rank r reads and answers r batches, and then waits for the others.
fn assert_same_captions(name: &str, whole: &LanguageModel, parted: &LanguageModel, rank: i64) {
    for batch in 0..rank {
        let input = input(whole.hidden_size(), [2 + batch, 4, 3]);
        let length = (3 + 2 * rank + batch) as usize;
        let [whole, parted] =
            [whole, parted].map(|model| greedy(model, &input.before, &input.mask, length, &[]));
        assert!(whole.iter().any(|caption| !caption.is_empty()));
        assert_eq!(whole, parted, "{name}: captions of batch {batch} on rank {rank}");
    }
    parted.accompany().unwrap();
}

fn assert_same_step(name: &str, kind: Kind, whole: &LanguageModel, parted: &LanguageModel, rank: i64) {
    // As many rows and tokens as the rank likes.
    let input = input(whole.hidden_size(), [2 + rank, 6, 7]);
    let [whole, parted_found] = [whole, parted].map(|model| step(model, &input));
    parted.check_peers().unwrap();
    for (what, (one, two)) in ["loss", "gradient"].into_iter().zip(whole.iter().zip(&parted_found)) {
        let largest = one.abs().max().double_value(&[]);
        let apart = (one - two).abs().max().double_value(&[]);
        assert!(largest > 1e-4, "{name}: no {what}");
        assert!(
            apart <= TOLERANCE * largest,
            "{name} in {kind:?}, rank {rank}: {what} {apart:e} of {largest}"
        );
    }
}

fn is_the_whole(group: &dyn ProcessGroup) {
    tch::set_num_threads(1);
    let rank = group.rank() as i64;
    for name in CASES {
        for kind in [Kind::Float, Kind::BFloat16] {
            let (whole, parted) = (open(name, kind), parted(name, kind, group));
            assert_same_step(name, kind, &whole, &parted, rank);
            assert_same_captions(name, &whole, &parted, rank);
            // Everything is in its place for the next step.
            assert_same_step(name, kind, &whole, &parted, rank);
        }
    }
}

/// Rank 1 ends; the others learn of it.
fn loses_a_peer(group: Box<dyn ProcessGroup>) {
    let model = parted("language_llama", Kind::Float, group.as_ref());
    if group.rank() == 1 {
        return;
    }
    let input = input(model.hidden_size(), [2, 6, 7]);
    let _ = step(&model, &input);
    let error = model.check_peers().unwrap_err();
    assert!(matches!(error, CommError::PeerGone { .. }), "{error}");
    greedy(&model, &input.before, &input.mask, 3, &[]);
    model.accompany().unwrap();
}

// ---- memory

/// 64 layers of 3.2 MB in single precision.
fn large() -> LanguageConfig {
    let config = json!({
        "model_type": "llama", "vocab_size": reading::WORDS, "hidden_size": 256, "num_hidden_layers": 64,
        "intermediate_size": 704, "num_attention_heads": 4, "tie_word_embeddings": true,
    });
    LanguageConfig::from_hf_json(&config.to_string()).unwrap()
}

/// The most that this process ever had in memory, in bytes.
fn peak() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<i64>().unwrap()
}

/// Loads and takes a step; writes down by how much the peak has grown.
fn grows(group: &dyn ProcessGroup, is_parted: bool, out: &Path) {
    tch::set_num_threads(1);
    torch_bridge::keep_freed_memory();
    let kind = Kind::Float;
    // What the libraries allocate once for themselves is not counted.
    let _ =
        step(&open("language_llama", kind), &input(open("language_llama", kind).hidden_size(), [2, 6, 7]));
    group.barrier().unwrap();
    let before = peak();
    let mut weights = Weights::random();
    let model = match is_parted {
        true => LanguageModel::parted(&large(), &mut weights, kind, group.beside("large").unwrap()),
        false => LanguageModel::new(&large(), &mut weights, kind, Device::Cpu),
    };
    let model = model.with_gradient_checkpointing(true);
    let _ = step(&model, &input(model.hidden_size(), [2, 6, 7]));
    model.check_peers().unwrap();
    fs::write(out.join(format!("{is_parted} {}", group.rank())), (peak() - before).to_string()).unwrap();
}

#[test]
fn the_peak_of_a_rank_falls_by_at_least_what_the_plan_says() {
    let out = tempfile::tempdir().unwrap();
    for role in ["whole", "parted"] {
        Ranks::start(&format!("{role} {}", out.path().display()), 2).all_succeed();
    }
    let bytes = large().frozen_bytes(Kind::Float);
    let needed = bytes.parted(2) + bytes.gathered(2);
    let allowed = |bytes: i64| bytes * 15 / 100;
    for rank in 0..2 {
        let grown = |is_parted: bool| {
            let text = fs::read_to_string(out.path().join(format!("{is_parted} {rank}"))).unwrap();
            text.parse::<i64>().unwrap()
        };
        let (whole, parted) = (grown(false), grown(true));
        let planned = bytes.whole() - needed;
        let told = format!(
            "rank {rank}: {whole} bytes with all of {}, {parted} with a part of {needed}: {} less, planned {planned}",
            bytes.whole(),
            whole - parted
        );
        println!("{told}");
        // It may fall by more: a model that is loaded whole leaves holes between its layers.
        assert!(whole - parted >= planned - allowed(planned), "{told}");
        assert!(parted <= needed + allowed(bytes.whole()), "{told}");
    }
}

// ---- tests

#[test]
fn two_and_three_ranks_give_what_the_whole_model_gives() {
    for ranks in 2..=3 {
        Ranks::start("is_the_whole -", ranks).all_succeed();
    }
}

#[test]
fn a_lost_peer_is_an_error_and_no_hang() {
    Ranks::start("loses_a_peer -", 2).all_succeed();
}

#[test]
fn a_world_of_one_holds_all_parts() {
    is_the_whole(&SoloGroup::new(Device::Cpu));
}

#[test]
#[ignore = "one rank of the tests above, which start it"]
fn rank_process() {
    let Some(Role { role, group }) = Role::of_this_process() else { return };
    let (scenario, out) = role.split_once(' ').unwrap();
    match scenario {
        "is_the_whole" => is_the_whole(group.as_ref()),
        "loses_a_peer" => return loses_a_peer(group),
        "whole" | "parted" => grows(group.as_ref(), scenario == "parted", Path::new(out)),
        other => panic!("no scenario {other}"),
    }
    group.barrier().unwrap();
}
