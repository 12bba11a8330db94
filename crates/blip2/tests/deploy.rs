//! The files of deploy/: their engines know every key.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

const JOBSET: &str = "deploy/k8s/jobset.yaml";
const RUNTIME: &str = "deploy/kubeflow/clustertrainingruntime.yaml";
const TRAINJOB: &str = "deploy/kubeflow/trainjob.yaml";
/// The pod template of the JobSet.
const JOBSET_POD: &str = "/spec/replicatedJobs/0/template/spec/template/spec";

fn read(path: &str) -> String {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read_to_string(&whole).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("no text at {pointer}"))
}

/// What the snapshot of its kind's schema refuses in a manifest: place and reason.
fn refused(manifest: &Value) -> Vec<String> {
    let kind = text(manifest, "/kind").to_lowercase();
    let schema: Value = serde_json::from_str(&read(&format!("tests/schemas/{kind}.json"))).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    schema.iter_errors(manifest).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn every_manifest_is_one_that_its_engine_takes() {
    for folder in ["deploy/k8s", "deploy/kubeflow"] {
        let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
        for entry in fs::read_dir(whole).unwrap() {
            let path = format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap());
            assert_eq!(refused(&yaml(&path)), Vec::<String>::new(), "{path}");
        }
    }
}

#[test]
fn an_unknown_key_a_wrong_type_and_a_missing_key_are_refused_by_their_place() {
    let job = "/spec/replicatedJobs/0/template/spec";
    let container = &format!("{JOBSET_POD}/containers/0");
    let rule = "/spec/template/spec/replicatedJobs/0/template/spec/podFailurePolicy/rules/0";
    // File, object, key, its new value (none: taken away), where it is refused, and what the reason names.
    for (file, object, key, value, place, reason) in [
        (JOBSET, job, "backofLimit", Some(json!(0)), job, "backofLimit"),
        (JOBSET, job, "parallelism", Some(json!("2")), &format!("{job}/parallelism"), "integer"),
        (JOBSET, container, "volumeMount", Some(json!([])), container, "volumeMount"),
        (JOBSET, container, "name", None, container, "name"),
        (RUNTIME, "/spec/mlPolicy", "pytorch", Some(json!({})), "/spec/mlPolicy", "pytorch"),
        (RUNTIME, &format!("{rule}/onExitCodes"), "values", Some(json!(["78"])), rule, "integer"),
        (TRAINJOB, "/spec/trainer", "nodes", Some(json!(2)), "/spec/trainer", "nodes"),
        (TRAINJOB, "/spec/trainer", "args", Some(json!("config.toml")), "/spec/trainer/args", "array"),
        (TRAINJOB, "/spec", "runtimeRef", None, "/spec", "runtimeRef"),
        (TRAINJOB, "", "apiVersion", Some(json!("trainer.kubeflow.org/v2")), "/apiVersion", "v1alpha1"),
    ] {
        let mut manifest = yaml(file);
        let fields = manifest.pointer_mut(object).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => fields.insert(key.to_owned(), value),
            None => fields.remove(key),
        };
        let refused = refused(&manifest);
        assert_eq!(refused.len(), 1, "{file}: {object} {key}: {refused:?}");
        assert!(refused[0].starts_with(place) && refused[0].contains(reason), "{place}: {refused:?}");
    }
}
