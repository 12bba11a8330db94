//! Which nodes a launch spans, by the words of each engine that may have started the launcher.

use std::collections::HashMap;

use launch::{Detected, LaunchError, NodeFlags, Nproc, Rdzv, detect};
use proptest::prelude::*;

fn found(flags: NodeFlags, variables: &[(&str, &str)]) -> Result<Detected, LaunchError> {
    let map: HashMap<&str, &str> = variables.iter().copied().collect();
    detect(flags, &|name| map.get(name).map(|value| (*value).to_owned()))
}

fn nodes(variables: &[(&str, &str)]) -> (usize, Option<usize>, Option<String>) {
    let nodes = found(NodeFlags::default(), variables).unwrap().nodes;
    (nodes.nnodes, nodes.node_rank, nodes.rdzv.map(|rdzv| rdzv.to_string()))
}

fn refusal(variables: &[(&str, &str)]) -> String {
    found(NodeFlags::default(), variables).unwrap_err().to_string()
}

/// What Kubeflow Trainer sets.
const PET: [(&str, &str); 5] = [
    ("PET_NNODES", "2"),
    ("PET_NPROC_PER_NODE", "4"),
    ("PET_NODE_RANK", "1"),
    ("PET_MASTER_ADDR", "job-node-0-0.job"),
    ("PET_MASTER_PORT", "29500"),
];

/// `srun --ntasks-per-node=1 blip2 launch` on three nodes.
const SRUN: [(&str, &str); 8] = [
    ("SLURM_PROCID", "2"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_NUM_NODES", "3"),
    ("SLURM_STEP_NUM_TASKS", "3"),
    ("SLURM_NODEID", "2"),
    ("SLURM_STEP_NODELIST", "gpu[07-09]"),
    ("SLURM_STEP_TASKS_PER_NODE", "1(x3)"),
    ("SLURM_JOB_ID", "1234"),
];

/// `mpirun --map-by ppr:1:node blip2 launch` on two nodes.
const MPIRUN: [(&str, &str); 5] = [
    ("OMPI_COMM_WORLD_RANK", "1"),
    ("OMPI_COMM_WORLD_SIZE", "2"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "1"),
    ("MASTER_ADDR", "n0"),
    ("MASTER_PORT", "29600"),
];

#[test]
fn nobody_around_means_one_node() {
    let found = found(NodeFlags::default(), &[("HOME", "/root")]).unwrap();
    assert_eq!((found.nodes.nnodes, found.nodes.rdzv, found.max_restarts), (1, None, 3));
    assert_eq!((found.nproc, found.taken), (Nproc::Auto, vec![]));
}

#[test]
fn kubeflows_words_are_read_and_named() {
    let detected = found(NodeFlags::default(), &PET).unwrap();
    assert_eq!(detected.nproc, Nproc::Count(4));
    assert_eq!(nodes(&PET), (2, Some(1), Some("job-node-0-0.job:29500".into())));
    assert_eq!(
        detected.taken,
        [
            "--nproc-per-node 4, from PET_NPROC_PER_NODE",
            "--nnodes 2, from PET_NNODES",
            "--node-rank 1, from PET_NODE_RANK",
            "--rdzv job-node-0-0.job:29500, from PET_MASTER_ADDR and PET_MASTER_PORT",
        ]
    );
}

#[test]
fn flags_win() {
    let flags = NodeFlags {
        nproc_per_node: Some(Nproc::Count(1)),
        nnodes: Some(4),
        node_rank: Some(3),
        rdzv: Some("other:1".parse().unwrap()),
        max_restarts: Some(0),
    };
    let detected = found(flags, &PET).unwrap();
    assert_eq!((detected.nodes.nnodes, detected.nodes.node_rank), (4, Some(3)));
    assert_eq!((detected.nproc, detected.max_restarts), (Nproc::Count(1), 0));
    assert_eq!(detected.taken, Vec::<String>::new());
}

#[test]
fn flags_of_several_nodes_ask_for_their_number() {
    let rdzv = || NodeFlags { rdzv: Some("node0".parse().unwrap()), ..NodeFlags::default() };
    let number = || NodeFlags { node_rank: Some(0), ..NodeFlags::default() };
    for (flags, name) in [(rdzv(), "--rdzv"), (number(), "--node-rank")] {
        let said = found(flags, &[]).unwrap_err().to_string();
        assert!(said.starts_with(name) && said.contains("add --nnodes N"), "{said}");
    }
    // Somebody says it, be it 1.
    for flags in [rdzv(), number()] {
        assert_eq!(found(flags.clone(), &[("PET_NNODES", "1")]).unwrap().nodes.nnodes, 1);
        assert_eq!(found(NodeFlags { nnodes: Some(1), ..flags }, &[]).unwrap().nodes.nnodes, 1);
    }
    assert_eq!(found(rdzv(), &SRUN).unwrap().nodes.nnodes, 3);
}

#[test]
fn torchruns_fixed_range_and_endpoint_are_read() {
    let endpoint = [("PET_NNODES", "2:2"), ("PET_RDZV_ENDPOINT", "host0")];
    assert_eq!(nodes(&endpoint), (2, None, Some("host0:29400".into())));
    assert!(refusal(&[("PET_NNODES", "1:4")]).contains("PET_NNODES"));
    assert!(refusal(&[("PET_NPROC_PER_NODE", "cpu")]).contains("PET_NPROC_PER_NODE"));
}

#[test]
fn sruns_tasks_are_launchers_and_meet_on_the_first_host() {
    let (nnodes, rank, rdzv) = nodes(&SRUN);
    assert_eq!((nnodes, rank), (3, Some(2)));
    let (host, port) = rdzv.as_deref().unwrap().split_once(':').unwrap();
    assert_eq!(host, "gpu07");
    assert!((20_000..32_000).contains(&port.parse::<u16>().unwrap()));
    // In the batch script itself, and in a shell of salloc, there is no step.
    let batch: Vec<_> = SRUN.into_iter().filter(|(name, _)| *name != "SLURM_STEP_ID").collect();
    assert_eq!(nodes(&batch).0, 1);
    let mut crowded = SRUN;
    crowded[3].1 = "12";
    assert!(refusal(&crowded).contains("--ntasks-per-node=1"));
}

#[test]
fn mpiruns_ranks_are_launchers() {
    assert_eq!(nodes(&MPIRUN), (2, Some(1), Some("n0:29600".into())));
    assert!(refusal(&MPIRUN[..3]).contains("--rdzv"));
    let mut crowded = MPIRUN;
    (crowded[1].1, crowded[2].1) = ("8", "4");
    assert!(refusal(&crowded).contains("ppr:1:node"));
}

#[test]
fn one_process_a_pod_is_a_launcher() {
    let pod = [("RANK", "2"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "job-master-0"), ("MASTER_PORT", "23456")];
    assert_eq!(nodes(&pod), (4, Some(2), Some("job-master-0:23456".into())));
}

#[test]
fn meeting_places_are_read() {
    for (text, host, port) in [
        ("node0", "node0", 29400),
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("[fe80::1]:9", "fe80::1", 9),
        ("[::1]", "::1", 29400),
    ] {
        assert_eq!(text.parse::<Rdzv>().unwrap(), Rdzv { host: host.into(), port }, "{text}");
    }
    for refused in [
        "",
        ":29400",
        "host:0",
        "host:70000",
        "host:x",
        "fe80::1:9x",
        "a b:1",
        "tcp://host:1",
        "[::1",
        "[::1]9",
    ] {
        assert!(refused.parse::<Rdzv>().is_err(), "{refused:?}");
    }
}

proptest! {
    #[test]
    fn no_environment_makes_it_panic_and_what_is_accepted_makes_sense(
        values in prop::collection::vec(prop_oneof!["", "[0-9]{1,2}", "\\PC{0,4}"], PET.len() + SRUN.len()),
    ) {
        let names = PET.iter().chain(&SRUN).map(|(name, _)| *name);
        let map: HashMap<&str, String> = names.zip(values).collect();
        if let Ok(found) = detect(NodeFlags::default(), &|name| map.get(name).cloned()) {
            let nodes = found.nodes;
            prop_assert!(nodes.nnodes <= 1 || nodes.rdzv.is_some());
            prop_assert!(nodes.node_rank.is_none_or(|rank| rank < nodes.nnodes));
        }
    }

    #[test]
    fn meeting_places_read_back(host in "[a-z0-9.-]{1,12}", port in 1u16..) {
        let rdzv = Rdzv { host, port };
        prop_assert_eq!(rdzv.to_string().parse::<Rdzv>().unwrap(), rdzv);
    }
}
