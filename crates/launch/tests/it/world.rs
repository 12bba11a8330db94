//! Who a process is, by the words of each launcher that may have started it.

use std::collections::HashMap;

use launch::{LaunchError, Source, World};
use proptest::prelude::*;

fn world(variables: &[(&str, &str)]) -> Result<World, LaunchError> {
    let map: HashMap<&str, &str> = variables.iter().copied().collect();
    World::from_vars(&|name| map.get(name).map(|value| (*value).to_owned()))
}

fn refusal(variables: &[(&str, &str)]) -> String {
    world(variables).unwrap_err().to_string()
}

const TORCHRUN: [(&str, &str); 8] = [
    ("RANK", "9"),
    ("WORLD_SIZE", "16"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "8"),
    ("GROUP_RANK", "1"),
    ("MASTER_ADDR", "host0"),
    ("MASTER_PORT", "29400"),
    ("TORCHELASTIC_RESTART_COUNT", "3"),
];

/// `TORCHRUN` with some values replaced; an empty value takes the variable away.
fn torchrun_with(changes: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let changed: HashMap<&str, &str> = changes.iter().copied().collect();
    TORCHRUN.iter().map(|&(name, value)| (name, changed.get(name).copied().unwrap_or(value))).collect()
}

#[test]
fn a_process_nobody_started_is_alone() {
    assert_eq!(world(&[]).unwrap(), World::single());
    assert_eq!(world(&[("WORLD_SIZE", "1"), ("HOME", "/root")]).unwrap(), World::single());
}

#[test]
fn torchrun_words_are_read() {
    let expected = World {
        rank: 9,
        local_rank: 1,
        world_size: 16,
        local_world_size: 8,
        node_rank: 1,
        master_addr: "host0".into(),
        master_port: 29400,
        generation: 3,
        source: Source::Torchrun,
    };
    assert_eq!(world(&TORCHRUN).unwrap(), expected);
}

#[test]
fn our_launcher_is_told_by_its_process_id_and_comes_before_the_scheduler_around_it() {
    let mut variables = torchrun_with(&[]);
    variables.extend([("BLIP2_LAUNCHER_PID", "4242"), ("SLURM_PROCID", "0"), ("SLURM_STEP_ID", "0")]);
    let read = world(&variables).unwrap();
    assert_eq!((read.rank, read.source), (9, Source::Launcher { pid: 4242 }));
}

#[test]
fn one_process_a_pod_needs_no_local_words() {
    let pod = [("RANK", "2"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "job-master-0"), ("MASTER_PORT", "23456")];
    let read = world(&pod).unwrap();
    assert_eq!((read.local_rank, read.local_world_size, read.node_rank), (0, 1, 2));
}

#[test]
fn open_mpi_words_are_read() {
    let node = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("MASTER_ADDR", "n0"),
        ("MASTER_PORT", "29400"),
    ];
    let read = world(&node).unwrap();
    assert_eq!((read.rank, read.local_rank, read.node_rank, read.source), (3, 1, 1, Source::OpenMpi));
    assert!(refusal(&node[..4]).contains("MASTER_ADDR"));
    assert!(refusal(&node[..5]).contains("MASTER_PORT"));
}

const SRUN: [(&str, &str); 8] = [
    ("SLURM_PROCID", "3"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_STEP_NUM_TASKS", "4"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODEID", "1"),
    ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
    ("SLURM_STEP_NODELIST", "gpu[07-08]"),
    ("SLURM_JOB_ID", "1234"),
];

#[test]
fn srun_words_are_read_and_all_tasks_find_one_meeting_place() {
    let read = world(&SRUN).unwrap();
    assert_eq!((read.rank, read.local_rank, read.world_size, read.local_world_size), (3, 1, 4, 2));
    assert_eq!((read.node_rank, read.source, read.master_addr.as_str()), (1, Source::Slurm, "gpu07"));
    assert!((20_000..32_000).contains(&read.master_port), "{}", read.master_port);
    let mut first = SRUN;
    (first[0].1, first[3].1, first[4].1) = ("0", "0", "0");
    let first = world(&first).unwrap();
    assert_eq!((first.master_addr, first.master_port), (read.master_addr, read.master_port));
}

#[test]
fn a_batch_script_is_not_a_task() {
    let batch: Vec<_> = SRUN.into_iter().filter(|(name, _)| *name != "SLURM_STEP_ID").collect();
    assert_eq!(world(&batch).unwrap(), World::single());
}

#[test]
fn contradictions_are_refused_by_name() {
    let cases = [
        (torchrun_with(&[("RANK", "16")]), ["RANK=16", "WORLD_SIZE=16"]),
        (torchrun_with(&[("LOCAL_RANK", "8")]), ["LOCAL_RANK=8", "LOCAL_WORLD_SIZE=8"]),
        (torchrun_with(&[("LOCAL_WORLD_SIZE", "32")]), ["LOCAL_WORLD_SIZE=32", "WORLD_SIZE=16"]),
        (torchrun_with(&[("WORLD_SIZE", "")]), ["RANK is set", "WORLD_SIZE is not"]),
        (torchrun_with(&[("WORLD_SIZE", "0"), ("RANK", "0")]), ["RANK=0", "WORLD_SIZE=0"]),
        (torchrun_with(&[("LOCAL_WORLD_SIZE", "")]), ["LOCAL_RANK is set", "LOCAL_WORLD_SIZE is not"]),
        (torchrun_with(&[("MASTER_PORT", "70000")]), ["MASTER_PORT", "70000"]),
        (torchrun_with(&[("MASTER_PORT", "0")]), ["MASTER_PORT=0", "free"]),
        (torchrun_with(&[("MASTER_ADDR", "")]), ["MASTER_ADDR", "rank 0"]),
        (torchrun_with(&[("RANK", "-1")]), ["RANK", "-1"]),
        (vec![("WORLD_SIZE", "4")], ["WORLD_SIZE=4", "RANK is not"]),
    ];
    for (variables, names) in cases {
        let message = refusal(&variables);
        assert!(names.iter().all(|name| message.contains(name)), "{message} should name {names:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_consistent(
        values in prop::collection::vec(prop_oneof!["", "[0-9]{1,2}", "\\PC{0,4}"], TORCHRUN.len()),
    ) {
        let lookup = |name: &str| {
            TORCHRUN.iter().position(|(known, _)| *known == name).map(|i| values[i].clone())
        };
        if let Ok(world) = World::from_vars(&lookup) {
            prop_assert!(world.rank < world.world_size);
            prop_assert!(world.local_rank < world.local_world_size);
            prop_assert!(world.local_world_size <= world.world_size);
            prop_assert!(world.world_size == 1 || world.master_port > 0);
        }
    }
}
