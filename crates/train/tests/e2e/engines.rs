//! Whoever starts the ranks, they train the same run: torchrun, mpirun, srun, a pod engine, launchers on two nodes.

use std::process::{Command, Stdio};

use launch::ReservedPort;

use crate::common::{Course, TinyWorld, blip2, course};

type Variables = Vec<(&'static str, String)>;

fn free_port() -> ReservedPort {
    ReservedPort::on("127.0.0.1").unwrap()
}

/// Two processes of `program`, each with the variables of its number, to their good end.
fn pair(world: &TinyWorld, mut program: impl FnMut() -> Command, engine: &dyn Fn(usize) -> Variables) {
    let processes: Vec<_> = (0..2)
        .map(|number| {
            let mut command = program();
            command.current_dir(world.path("")).env("OMP_NUM_THREADS", "1").envs(engine(number));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
}

fn workers(world: &TinyWorld, run: &str, engine: &dyn Fn(usize) -> Variables) -> Course {
    let program = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-worker"));
        command.args(["train", "--set", &format!("run.dir={run}"), "--", "config.toml"]);
        command
    };
    pair(world, program, engine);
    course(&world.path(run))
}

#[test]
fn every_engine_trains_what_the_launcher_trains() {
    let world = TinyWorld::new();
    world.run("launched").done();
    let launched = course(&world.path("launched"));
    let meeting = |port: &ReservedPort| {
        vec![("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.number().to_string())]
    };
    let port = free_port();
    let torchrun = |rank: usize| {
        let mut variables = meeting(&port);
        variables.extend([("RANK", rank.to_string()), ("WORLD_SIZE", "2".into())]);
        variables.extend([("LOCAL_RANK", rank.to_string()), ("LOCAL_WORLD_SIZE", "2".into())]);
        variables
    };
    workers(&world, "torchrun", &torchrun).assert_same(&launched, "torchrun");
    let port = free_port();
    let mpirun = |rank: usize| {
        let mut variables = meeting(&port);
        variables.extend([("OMPI_COMM_WORLD_RANK", rank.to_string()), ("OMPI_COMM_WORLD_SIZE", "2".into())]);
        variables.extend([
            ("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string()),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2".into()),
        ]);
        variables
    };
    workers(&world, "mpirun", &mpirun).assert_same(&launched, "mpirun");
    let port = free_port();
    let srun = |rank: usize| {
        vec![
            ("SLURM_PROCID", rank.to_string()),
            ("SLURM_LOCALID", rank.to_string()),
            ("SLURM_STEP_ID", "0".into()),
            ("SLURM_STEP_NUM_TASKS", "2".into()),
            ("SLURM_STEP_TASKS_PER_NODE", "2".into()),
            ("SLURM_NODEID", "0".into()),
            ("SLURM_JOB_ID", "7".into()),
            ("MASTER_PORT", port.number().to_string()),
        ]
    };
    workers(&world, "srun", &srun).assert_same(&launched, "srun");
}

#[test]
fn ranks_that_read_other_configs_do_not_begin() {
    let world = TinyWorld::new();
    let port = free_port();
    let processes = [7, 8].map(|seed| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-worker"));
        command.args(["train", "--set", &format!("run.seed={seed}"), "--", "config.toml"]);
        let rank = (seed - 7).to_string();
        command.envs([
            ("RANK", rank.as_str()),
            ("LOCAL_RANK", &rank),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
        ]);
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.number().to_string());
        command.current_dir(world.path("")).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).spawn().unwrap()
    });
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("reads another config than other ranks do"), "{said}");
    }
    assert!(!world.path("run/metrics.jsonl").exists(), "nothing was trained");
}

#[test]
fn launchers_on_two_nodes_train_what_one_launcher_trains() {
    let world = TinyWorld::new();
    world.run("launched").done();
    let (port, run) = (free_port(), "two");
    let program = || {
        let mut command = blip2();
        command.args(["launch", "config.toml", "--set", &format!("run.dir={run}")]);
        command
    };
    // Kubeflow Trainer's variables.
    let node = |number: usize| {
        vec![
            ("PET_NNODES", "2".to_owned()),
            ("PET_NPROC_PER_NODE", "1".into()),
            ("PET_NODE_RANK", number.to_string()),
            ("PET_MASTER_ADDR", "127.0.0.1".into()),
            ("PET_MASTER_PORT", port.number().to_string()),
        ]
    };
    pair(&world, program, &node);
    course(&world.path(run)).assert_same(&course(&world.path("launched")), "two nodes");
    for rank in 0..2 {
        assert!(world.path(run).join(format!("logs/rank-{rank}.log")).is_file());
    }
}
