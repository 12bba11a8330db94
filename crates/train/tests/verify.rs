//! `blip2-worker verify` on the reference cases, and on cases that are wrong on purpose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use checkpoint::{Dtype, HostTensor, read_safetensors, write_safetensors};
use serde_json::Value;
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn verify(cases: &[&Path], flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-worker"));
    command.arg("verify").args(flags).args(cases).output().expect("the worker starts")
}

/// One JSON object a case.
fn reports(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn rows(report: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<&str> {
    let rows = report["rows"].as_array().expect("rows").iter().filter(|row| wanted(row));
    rows.map(|row| row["tensor"].as_str().expect("a name")).collect()
}

/// All of `names` are met, and every expected tensor of theirs has a line.
fn assert_met(names: &[&str]) {
    let folders: Vec<PathBuf> = names.iter().map(|name| golden(name)).collect();
    let output = verify(&folders.iter().map(PathBuf::as_path).collect::<Vec<_>>(), &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reports = reports(&output);
    assert_eq!(reports.len(), names.len());
    for ((report, name), folder) in reports.iter().zip(names).zip(&folders) {
        assert_eq!((&report["case"], &report["ok"]), (&Value::from(*name), &Value::from(true)));
        assert_eq!(rows(report, |row| row["ok"] == false), [""; 0]);
        let compared = rows(report, |_| true);
        let Ok(expected) = read_safetensors(&folder.join("expected.safetensors")) else { continue };
        let missing: Vec<&String> = expected.keys().filter(|key| !compared.contains(&key.as_str())).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

#[test]
fn stages_equal_lavis() {
    assert_met(&["stage1_eva", "stage1_clip", "stage2_opt_noprompt", "stage2_opt_prompt", "stage2_t5"]);
}

#[test]
fn generation_equals_transformers() {
    assert_met(&["generate_opt", "generate_t5"]);
}

#[test]
fn conversions_equal_transformers() {
    assert_met(&["convert_opt", "convert_t5"]);
}

#[test]
fn two_ranks_equal_lavis_under_ddp() {
    assert_met(&["stage1_ddp2_eva"]);
}

#[test]
fn training_follows_lavis() {
    assert_met(&["trajectory_stage1", "trajectory_stage2_opt", "lr_schedules"]);
}

#[test]
fn encoders_and_retrieval_equal_the_peers() {
    assert_met(&["vision_eva", "vision_clip", "vision_eva_hf", "vision_clip_hf", "pos_embed", "rerank"]);
}

#[test]
fn data_and_figures_equal_the_peers() {
    assert_met(&[
        "text",
        "preprocess",
        "preprocess_224",
        "metric_captions",
        "metric_retrieval",
        "metric_vqa",
    ]);
}

/// A copy of a golden case, to be spoilt.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(golden(name)).expect("the case") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, folder.path().join(name)).expect("a copy");
    }
    folder
}

/// Rewrites one tensor of a file of the case; `None` takes it out.
fn change(folder: &Path, file: &str, name: &str, by: impl Fn(HostTensor) -> Option<HostTensor>) {
    let path = folder.join(file);
    let mut tensors = read_safetensors(&path).expect("tensors");
    let tensor = tensors.remove(name).expect("the tensor");
    tensors.extend(by(tensor).map(|tensor| (name.to_owned(), tensor)));
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
}

/// Adds to the element in the middle.
fn plus(amount: f32) -> impl Fn(HostTensor) -> Option<HostTensor> {
    move |tensor| {
        let mut values = tensor.to_f32_vec();
        let middle = values.len() / 2;
        values[middle] += amount;
        Some(HostTensor::from_f32(&tensor.shape, &values).expect("a tensor"))
    }
}

/// Exit 1, and what is printed on both sides.
fn assert_short(folder: &Path) -> (Value, String) {
    let output = verify(&[folder], &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report = reports(&output).remove(0);
    assert_eq!(report["ok"], Value::from(false));
    (report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn one_wrong_element_falls_short_and_is_named() {
    let gradient = "grad.Qformer.bert.encoder.layer.1.attention.output.dense.weight";
    for (name, amount) in [("loss", 3e-5), ("logits", 2e-3), (gradient, 2e-3), ("query_output", f32::NAN)] {
        let case = copy("stage2_opt_prompt");
        change(case.path(), "expected.safetensors", name, plus(amount));
        let (report, told) = assert_short(case.path());
        assert_eq!(rows(&report, |row| row["ok"] == false), [name]);
        assert!(told.contains(name) && told.contains("stage2_opt_prompt"), "{told}");
    }
}

#[test]
fn a_wrong_element_of_one_rank_falls_short() {
    let case = copy("stage1_ddp2_eva");
    change(case.path(), "expected.safetensors", "rank1.sim_t2i", plus(0.01));
    change(case.path(), "expected.safetensors", "grad.ln_vision.weight", plus(0.01));
    let (report, _) = assert_short(case.path());
    assert_eq!(rows(&report, |row| row["ok"] == false), ["grad.ln_vision.weight", "rank1.sim_t2i"]);
}

#[test]
fn missing_and_unknown_tensors_fall_short() {
    let case = copy("vision_eva");
    change(case.path(), "expected.safetensors", "features", |_| None);
    let (report, told) = assert_short(case.path());
    assert_eq!(rows(&report, |row| row["ok"] == false), ["features"], "{told}");

    let case = copy("vision_eva");
    let path = case.path().join("expected.safetensors");
    let mut tensors = read_safetensors(&path).expect("tensors");
    tensors.insert("grad.unheard_of".into(), HostTensor::zeros(Dtype::F32, &[2]).expect("a tensor"));
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
    assert_eq!(rows(&assert_short(case.path()).0, |row| row["ok"] == false), ["grad.unheard_of"]);
}

#[test]
fn a_table_shows_what_falls_short() {
    let case = copy("vision_clip");
    change(case.path(), "expected.safetensors", "ln_vision_features", plus(1.0));
    let output = verify(&[&golden("vision_eva"), case.path()], &[]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("vision_eva (vision_eva): ok, 2 compared"), "{table}");
    let line = table.lines().find(|line| line.contains("NO")).expect("a line that is not met");
    assert!(line.trim_start().starts_with("ln_vision_features"), "{table}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 2 cases not met"));
}

/// Spoils a copy of `name`; the error must contain all of `told`.
fn assert_unreadable(name: &str, spoil: impl Fn(&Path), told: &[&str]) {
    let case = copy(name);
    spoil(case.path());
    let (report, printed) = assert_short(case.path());
    let error = report["error"].as_str().expect("an error");
    assert!(told.iter().all(|part| error.contains(part) && printed.contains(part)), "{error}");
}

fn replace(file: &'static str, from: &'static str, to: &'static str) -> impl Fn(&Path) {
    move |folder| {
        let text = fs::read_to_string(folder.join(file)).expect("text");
        assert!(text.contains(from), "{from}");
        fs::write(folder.join(file), text.replace(from, to)).expect("written");
    }
}

#[test]
fn a_case_that_cannot_be_read_is_told_by_file_and_key() {
    let remove =
        |file: &'static str| move |folder: &Path| fs::remove_file(folder.join(file)).expect("removed");
    assert_unreadable("vision_eva", remove("case.toml"), &["case.toml", "No such file"]);
    assert_unreadable("vision_eva", remove("weights.safetensors"), &["weights.safetensors", "No such file"]);
    let family = replace("case.toml", "family = \"vision_eva\"", "family = \"telepathy\"");
    assert_unreadable("vision_eva", family, &["case.toml", "telepathy", "vision_clip_hf"]);
    let width = replace("case.toml", "width = 60", "widht = 60");
    assert_unreadable("vision_eva", width, &["case.toml", "[vision]", "width"]);
    let limit = replace("case.toml", "grad_abs = 1e-05", "");
    assert_unreadable("stage2_opt_prompt", limit, &["case.toml", "[tolerance]", "grad_abs"]);
    let other_size = replace("case.toml", "num_query_tokens = 5", "num_query_tokens = 7");
    assert_unreadable(
        "stage2_opt_prompt",
        other_size,
        &["weights.safetensors", "query_tokens", "[1, 5, 48]"],
    );
    let no_image = |folder: &Path| change(folder, "inputs.safetensors", "image", |_| None);
    assert_unreadable("stage2_opt_prompt", no_image, &["inputs.safetensors", "no tensor image"]);
    let pixels = |tensor: HostTensor| HostTensor::zeros(tensor.dtype, &[1, 28, 28]).ok();
    let flat = |folder: &Path| change(folder, "inputs.safetensors", "image", pixels);
    assert_unreadable("vision_eva", flat, &["inputs.safetensors", "image is [1, 28, 28]"]);
    let two_colours = |tensor: HostTensor| HostTensor::zeros(tensor.dtype, &[2, 2, 28, 28]).ok();
    let two_colours = |folder: &Path| change(folder, "inputs.safetensors", "image", two_colours);
    assert_unreadable("vision_eva", two_colours, &["do not fit each other"]);
}

#[test]
fn weights_of_another_model_are_told_by_name() {
    let file = "weights.safetensors";
    let lacking = |folder: &Path| change(folder, file, "opt_proj.bias", |_| None);
    assert_unreadable("stage2_opt_prompt", lacking, &[file, "language_projection.bias is missing"]);
    let untied = |folder: &Path| change(folder, file, "opt_model.lm_head.weight", plus(1.0));
    assert_unreadable("stage2_opt_prompt", untied, &[file, "opt_model.lm_head.weight is not a copy"]);
    let rename = |folder: &Path| {
        let path = folder.join(file);
        let mut tensors = read_safetensors(&path).expect("tensors");
        let tensor = tensors.remove("ln_vision.bias").expect("a tensor");
        tensors.insert("ln_visoin.bias".into(), tensor);
        write_safetensors(&path, &tensors, &Default::default()).expect("written");
    };
    assert_unreadable("vision_eva", rename, &[file, "ln_visoin.bias"]);
}

#[test]
fn a_rank_without_its_inputs_ends_the_others_and_is_quoted() {
    let no_ids = |folder: &Path| change(folder, "inputs.safetensors", "rank1.input_ids", |_| None);
    assert_unreadable("stage1_ddp2_eva", no_ids, &["no tensor rank1.input_ids"]);
}
