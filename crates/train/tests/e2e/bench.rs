//! `blip2 bench step` and `allreduce` through the real programs: that they measure, not how fast the machine is.

use crate::common::{TinyWorld, blip2};
use serde_json::Value;

/// What was printed, and its last line as JSON.
fn measured(world: &TinyWorld, args: &[&str]) -> (String, Value) {
    let output = blip2().arg("bench").args(args).current_dir(world.path("")).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let last = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    (stdout, last)
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn one_rank_and_two_take_the_same_step() {
    let world = TinyWorld::new();
    let (text, json) = measured(&world, &["step", "config.toml", "--pairs", "3", "--json"]);
    for ranks in [1, 2] {
        let name = ["/one_rank", "/all_ranks"][ranks - 1];
        assert_eq!(number(&json, &format!("{name}/ranks")) as usize, ranks);
        let pairs = number(&json, &format!("{name}/pairs_per_second"));
        let seconds = number(&json, &format!("{name}/step_seconds"));
        assert!((pairs * seconds - 3.0 * ranks as f64).abs() < 1e-6, "{json}");
        assert!(number(&json, &format!("{name}/peak_memory_bytes")) > f64::from(1 << 20), "{json}");
    }
    let (one, two) =
        (number(&json, "/one_rank/pairs_per_second"), number(&json, "/all_ranks/pairs_per_second"));
    assert!((number(&json, "/weak_scaling") - two / (2.0 * one)).abs() < 1e-9, "{json}");
    assert!(number(&json, "/comm_seconds") > 0.0, "two ranks talk: {json}");
    assert!((0.0..=1.0).contains(&number(&json, "/comm_hidden_share")), "{json}");
    assert_eq!(number(&json, "/threads_per_rank"), 1.0);
    assert!(text.contains("weak scaling: 2 ranks do "), "{text}");
}

#[test]
fn one_rank_alone_is_measured_on_all_cores() {
    let world = TinyWorld::new();
    let (_, json) = measured(&world, &["step", "config.toml", "--ranks", "1", "--steps", "1", "--json"]);
    assert!(number(&json, "/one_rank/pairs_per_second") > 0.0);
    assert_eq!(json.get("weak_scaling"), None);
}

#[test]
fn a_step_that_cannot_be_says_why_with_the_exit_code_of_its_kind() {
    let world = TinyWorld::new();
    let args = ["bench", "step", "config.toml", "--set", "model.qformer.num_query_tokens=0"];
    let output = blip2().args(args).current_dir(world.path("")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("num_query_tokens must be at least 1"), "{said}");
}

#[test]
fn sums_of_every_size_are_measured_beside_memcpy() {
    let world = TinyWorld::new();
    let (text, json) = measured(&world, &["allreduce", "--ranks", "3", "--json"]);
    let rows = json["rows"].as_array().unwrap();
    let sizes: Vec<f64> = rows.iter().map(|row| number(row, "/bytes")).collect();
    assert_eq!(sizes, [0, 2, 4, 6, 8, 10, 12, 14, 16].map(|power| f64::from(1 << (10 + power))));
    assert_eq!(json["ranks"], 3);
    for row in rows {
        let (whole, link) = (number(row, "/gb_per_second"), number(row, "/link_gb_per_second"));
        assert!((link - whole * 4.0 / 3.0).abs() < 1e-9, "{row}");
        assert!((whole - 1e-9 * number(row, "/bytes") / number(row, "/seconds")).abs() < 1e-9, "{row}");
        assert!(number(row, "/memcpy_gb_per_second") > 0.0);
    }
    assert!(text.contains("64 MiB") && text.contains("memcpy"), "{text}");
}
