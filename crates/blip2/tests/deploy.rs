//! The files of deploy/ and docker/: their engines know every key, `blip2` takes every command, and every path of the
//! config that they name lies on a volume.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod place;

use std::fs;
use std::path::{Path, PathBuf};

use place::{Place, run};
use serde_json::{Value, json};

const JOBSET: &str = "deploy/k8s/jobset.yaml";
const RUNTIME: &str = "deploy/kubeflow/clustertrainingruntime.yaml";
const TRAINJOB: &str = "deploy/kubeflow/trainjob.yaml";
const COMPOSE: &str = "docker/compose.yaml";
const SBATCH: &str = "deploy/slurm/train.sbatch";
const UNIT: &str = "deploy/systemd/blip2-train@.service";
const DOCKERFILE: &str = "docker/Dockerfile";
/// The pods of the JobSet and of the runtime.
const JOBSET_POD: &str = "/spec/replicatedJobs/0/template/spec/template/spec";
const RUNTIME_POD: &str = "/spec/template/spec/replicatedJobs/0/template/spec/template/spec";

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
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

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().unwrap_or_else(|| panic!("no list at {pointer}"))
}

fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(value, pointer).iter().map(|item| item.as_str().unwrap()).collect()
}

/// What follows `start` in the lines of a file that begin so.
fn after<'a>(file: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    file.lines().filter_map(move |line| line.strip_prefix(start))
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
        for entry in fs::read_dir(checkout(folder)).unwrap() {
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

/// The config that a command line names, with its `--set` in it. Images have the checkout's configs in /configs.
fn config(args: &[&str]) -> toml::Table {
    let path = args.iter().find(|arg| arg.ends_with(".toml")).expect("a config");
    let mut config: toml::Table = toml::from_str(&read(path.trim_start_matches('/'))).unwrap();
    for set in args.iter().zip(&args[1..]).filter(|(flag, _)| **flag == "--set").map(|(_, set)| set) {
        let (table_and_key, value) = set.split_once('=').unwrap();
        let (table, key) = table_and_key.split_once('.').unwrap();
        let place = config[table].get_mut(key).unwrap_or_else(|| panic!("{path} has no {table_and_key}"));
        *place = value.into();
    }
    config
}

/// What `blip2` says that it would start with these arguments and this environment.
fn dry_run(args: &[&str], env: &[(&str, &str)]) -> String {
    let place = Place::with_worker();
    let mut command = place.command(args);
    let (code, stdout, stderr) = run(command.arg("--dry-run").envs(env.iter().copied()));
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    let config = args.iter().find(|arg| arg.ends_with(".toml")).unwrap();
    assert!(place.asked()[0].ends_with(&format!(" -- {config}")), "{:?}", place.asked());
    stdout
}

/// Node `index` of `nodes` with `nproc` workers each starts those of its ranks, all of which meet at `rdzv`.
fn starts_its_ranks(said: &str, index: usize, nodes: usize, nproc: usize, rdzv: &str) {
    assert!(
        said.contains(&format!("nodes: {nodes}, meeting at {rdzv}; number of this one: {index}\n")),
        "{said}"
    );
    let workers: Vec<&str> = said.lines().filter(|line| line.starts_with("RANK=")).collect();
    assert_eq!(workers.len(), nproc, "{said}");
    for (local, worker) in workers.iter().enumerate() {
        let rank = format!("RANK={} WORLD_SIZE={} LOCAL_RANK={local} ", index * nproc + local, nodes * nproc);
        assert!(worker.starts_with(&rank), "{rank}: {worker}");
    }
}

fn number(value: &Value, pointer: &str) -> usize {
    usize::try_from(at(value, pointer).as_u64().unwrap()).unwrap()
}

/// Variables of a container in pod `index`. A secret is 64 digits.
fn pod_env(container: &Value, index: usize) -> Vec<(String, String)> {
    let completion_index = "metadata.annotations['batch.kubernetes.io/job-completion-index']";
    let value = |variable: &Value| match variable.get("value") {
        Some(value) => value.as_str().unwrap().to_owned(),
        None if variable.pointer("/valueFrom/secretKeyRef").is_some() => "0".repeat(64),
        None => {
            assert_eq!(text(variable, "/valueFrom/fieldRef/fieldPath"), completion_index);
            index.to_string()
        }
    };
    list(container, "/env").iter().map(|one| (text(one, "/name").to_owned(), value(one))).collect()
}

#[test]
fn each_pod_of_the_jobset_starts_its_ranks() {
    let jobset = yaml(JOBSET);
    let node = at(&jobset, "/spec/replicatedJobs/0");
    let container = at(&jobset, &format!("{JOBSET_POD}/containers/0"));
    let (nodes, gpus) =
        (number(node, "/template/spec/completions"), number(container, "/resources/limits/nvidia.com~1gpu"));
    assert_eq!(nodes, number(node, "/template/spec/parallelism"));
    // JobSet names pods so, in a subdomain with its own name.
    let (name, port) = (text(&jobset, "/metadata/name"), number(container, "/ports/0/containerPort"));
    let rdzv = format!("{name}-{}-0-0.{name}:{port}", text(node, "/name"));
    for index in 0..nodes {
        let mut env = pod_env(container, index);
        let workers = env.iter_mut().find(|(name, _)| name == "PET_NPROC_PER_NODE").unwrap();
        // There may be no GPU here, and `gpu` means the pod's.
        assert_eq!(std::mem::replace(&mut workers.1, gpus.to_string()), "gpu");
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
        starts_its_ranks(&dry_run(&texts(container, "/args"), &env), index, nodes, gpus, &rdzv);
    }
}

#[test]
fn each_pod_of_the_trainjob_starts_its_ranks() {
    let trainer = &yaml(TRAINJOB)["spec"]["trainer"];
    assert_eq!(texts(trainer, "/command"), ["blip2", "launch"]);
    let args = [vec!["launch"], texts(trainer, "/args")].concat();
    let (nodes, gpus) =
        (number(trainer, "/numNodes"), number(trainer, "/resourcesPerNode/limits/nvidia.com~1gpu"));
    for index in 0..nodes {
        // What the torch policy of Kubeflow Trainer 2.3 sets; of workers it says `auto`, which is all GPUs.
        let (nnodes, nproc, index_text) = (nodes.to_string(), gpus.to_string(), index.to_string());
        let env = [
            ("PET_NNODES", &*nnodes),
            ("PET_NPROC_PER_NODE", &*nproc),
            ("PET_NODE_RANK", &*index_text),
            ("PET_MASTER_ADDR", "blip2-paper-node-0-0.blip2-paper"),
            ("PET_MASTER_PORT", "29500"),
        ];
        let rdzv = "blip2-paper-node-0-0.blip2-paper:29500";
        starts_its_ranks(&dry_run(&args, &env), index, nodes, gpus, rdzv);
    }
}

#[test]
fn each_node_of_the_compose_file_starts_its_ranks() {
    let compose = yaml(COMPOSE);
    for index in 0..2 {
        let node = at(&compose, &format!("/services/node{index}"));
        assert_eq!(text(node, "/hostname"), format!("node{index}"));
        let env = [("PET_NODE_RANK", text(node, "/environment/PET_NODE_RANK"))];
        starts_its_ranks(&dry_run(&texts(node, "/command"), &env), index, 2, 1, "node0:29400");
    }
}

/// What a Job does with a pod that ends with a code or under a condition, by the first rule that fits.
fn action(job: &Value, code: u64, disrupted: bool) -> Option<&str> {
    let fits = |rule: &&Value| match rule.get("onExitCodes") {
        Some(codes) => list(codes, "/values").contains(&json!(code)),
        None => disrupted && text(rule, "/onPodConditions/0/type") == "DisruptionTarget",
    };
    list(job, "/podFailurePolicy/rules").iter().find(fits).map(|rule| text(rule, "/action"))
}

#[test]
fn only_accidents_count_as_restarts_and_what_no_try_mends_ends_the_job() {
    for (file, pod) in [(JOBSET, JOBSET_POD), (RUNTIME, RUNTIME_POD)] {
        let manifest = yaml(file);
        let job = at(&manifest, pod.strip_suffix("/template/spec").unwrap());
        for (code, disrupted, expected) in [
            (78, false, Some("FailJob")),
            (93, true, Some("FailJob")),
            (75, false, Some("Ignore")),
            (137, true, Some("Ignore")),
            (69, false, None),
            (137, false, None),
        ] {
            assert_eq!(action(job, code, disrupted), expected, "{file}: {code}, drained: {disrupted}");
        }
        // Without it the first accident would not be one of the JobSet's.
        assert_eq!(at(job, "/backoffLimit"), &json!(0), "{file}");
    }
    let compose = yaml(COMPOSE);
    let bound = text(&compose, "/services/node0/restart").strip_prefix("on-failure:").unwrap();
    assert!(bound.parse::<u32>().unwrap() > 0);
}

#[test]
fn the_example_of_the_batch_script_is_taken() {
    let script = read(SBATCH);
    let example = after(&script, "#   sbatch ").next().unwrap();
    let (_, args) = example.split_once("deploy/slurm/train.sbatch ").unwrap();
    let args: Vec<&str> = args.split(' ').collect();
    config(&args);
    assert!(
        dry_run(&[&["launch"], &args[..]].concat(), &[]).contains(" --set run.dir=/shared/run -- configs/")
    );
}

#[test]
fn the_commands_of_unit_and_comments_are_taken() {
    let unit = read(UNIT);
    let start = after(&unit, "ExecStart=").next().unwrap().replace("%i", "quickstart");
    let (program, args) = start.split_once(' ').unwrap();
    let folder = after(&unit, "WorkingDirectory=").next().unwrap();
    assert_eq!(program, format!("{folder}/target/release/blip2"));
    let args: Vec<&str> = args.split(' ').collect();
    config(&args);
    dry_run(&args, &[]);

    for file in [COMPOSE, JOBSET, TRAINJOB, RUNTIME, SBATCH, UNIT, DOCKERFILE] {
        for line in after(&read(file), "#   ") {
            let command = line.split("  #").next().unwrap();
            let named = |path: &str| assert!(checkout(path).exists(), "{file} names {path}");
            command
                .split(' ')
                .filter(|word| word.starts_with("deploy/") || word.starts_with("docker/"))
                .for_each(named);
            if let Some(args) = command.trim_end().strip_prefix("target/release/blip2 ") {
                let args = args.split(' ').chain(["--help"]).collect::<Vec<_>>();
                assert_eq!(run(&mut Place::without_worker().command(&args)).0, Some(0), "{file}: {line}");
            }
        }
    }
}

/// Every path of a config with whether the run writes there: keys called `dir` are written, all others read.
fn paths(value: &toml::Value, key: &str, found: &mut Vec<(String, bool)>) {
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| paths(value, key, found)),
        toml::Value::Array(items) => items.iter().for_each(|item| paths(item, key, found)),
        toml::Value::String(text)
            if ["data/", "weights/", "runs/", "/"].iter().any(|start| text.starts_with(start)) =>
        {
            found.push((text.clone(), key == "dir"));
        }
        _ => {}
    }
}

/// Paths of a config, relative ones in `folder`, that lie on no volume, or are written on one that is only read.
/// A volume is its place and whether it is only read.
fn uncovered(config: toml::Table, folder: &str, volumes: &[(&str, bool)]) -> Vec<String> {
    let mut found = Vec::new();
    paths(&toml::Value::Table(config), "", &mut found);
    let covered = |(path, written): &(String, bool)| {
        let path = Path::new(folder).join(path);
        volumes.iter().any(|(place, only_read)| path.starts_with(place) && !(*written && *only_read))
    };
    found.into_iter().filter(|path| !covered(path)).map(|(path, _)| path).collect()
}

/// Places of a pod's persistent volumes, and whether they are only read.
fn pod_volumes(pod: &Value) -> Vec<(&str, bool)> {
    let claimed = |name: &str| {
        let volume = list(pod, "/volumes").iter().find(|volume| text(volume, "/name") == name);
        volume.unwrap_or_else(|| panic!("no volume {name}")).get("persistentVolumeClaim").is_some()
    };
    let mounts = list(pod, "/containers/0/volumeMounts").iter();
    let kept = mounts.filter(|mount| claimed(text(mount, "/name")));
    kept.map(|mount| (text(mount, "/mountPath"), mount.get("readOnly") == Some(&json!(true)))).collect()
}

#[test]
fn what_a_named_config_reads_and_writes_lies_on_volumes() {
    let dockerfile = read(DOCKERFILE);
    let folder = after(&dockerfile, "WORKDIR ").last().unwrap();
    let (jobset, runtime, trainjob, compose) = (yaml(JOBSET), yaml(RUNTIME), yaml(TRAINJOB), yaml(COMPOSE));
    let pod = at(&jobset, JOBSET_POD);
    let jobset = uncovered(config(&texts(pod, "/containers/0/args")), folder, &pod_volumes(pod));
    assert_eq!(jobset, Vec::<String>::new(), "{JOBSET}");
    let args = texts(&trainjob, "/spec/trainer/args");
    let trainjob = uncovered(config(&args), folder, &pod_volumes(at(&runtime, RUNTIME_POD)));
    assert_eq!(trainjob, Vec::<String>::new(), "{TRAINJOB}");

    let node = at(&compose, "/services/node0");
    let mounts = texts(node, "/volumes");
    let places = mounts.iter().map(|mount| mount.split(':').nth(1).unwrap());
    let volumes: Vec<_> = places.zip(mounts.iter().map(|mount| mount.ends_with(":ro"))).collect();
    let compose = uncovered(config(&texts(node, "/command")), text(node, "/working_dir"), &volumes);
    assert_eq!(compose, Vec::<String>::new(), "{COMPOSE}");

    // The same can fail: a run folder on no volume, features on one that is only read.
    let quickstart = config(&["configs/quickstart.toml", "--set", "run.dir=/elsewhere"]);
    let missed = uncovered(quickstart, folder, &[("/home/blip2/data", true)]);
    assert_eq!(missed, ["data/quickstart/features", "/elsewhere"]);
}

#[test]
fn pods_run_as_the_images_user_and_volumes_are_of_its_group() {
    let dockerfile = read(DOCKERFILE);
    let user = dockerfile.split("--uid ").nth(1).unwrap().split_whitespace().next().unwrap();
    let user: u64 = user.parse().unwrap();
    for (file, pod) in [(JOBSET, JOBSET_POD), (RUNTIME, RUNTIME_POD)] {
        let manifest = yaml(file);
        let context = at(&manifest, &format!("{pod}/securityContext"));
        assert_eq!(context["runAsNonRoot"], json!(true), "{file}");
        assert_eq!((&context["runAsUser"], &context["fsGroup"]), (&json!(user), &json!(user)), "{file}");
    }
}

#[test]
fn files_that_the_images_are_built_from_are_there() {
    let compose = yaml(COMPOSE);
    assert_eq!(text(&compose, "/services/node0/build/dockerfile"), DOCKERFILE);
    let mount = texts(&compose, "/services/shards/volumes");
    let served = mount.iter().find_map(|mount| mount.strip_prefix("./")?.split(':').next()).unwrap();
    assert!(checkout("docker").join(served).is_file(), "{served}");
    let dockerfile = read(DOCKERFILE);
    let copied = after(&dockerfile, "COPY ").filter(|copied| !copied.starts_with("--from"));
    for sources in copied.map(|copied| copied.rsplit_once(' ').unwrap().0) {
        sources.split(' ').for_each(|source| assert!(checkout(source).exists(), "COPY {source}"));
    }
}
