//! Process groups alone and as real processes, all through one suite; and what happens when a peer does not answer.
//!
//! A test starts this very program once per rank, with [`RANK`] in its environment and [`rank_process`] as its test.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod processes;
mod suite;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use collectives::{
    CommError, Fabric, GradientDtype, Operation, ProcessGroup, ReduceOptions, SoloGroup, Timeouts, connect,
    connect_over, connect_within,
};
use launch::{Source, World};
use processes::{RANK, Ranks, free_port, world};
use suite::conforms;
use tch::{Cuda, Device, Kind, Tensor};
use torch_bridge::Store;

const IMPATIENT: Timeouts = Timeouts { init: Duration::from_secs(20), operation: Duration::from_secs(2) };

// ---- tests

#[test]
fn solo_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&SoloGroup::new(Device::Cpu), folder.path());
    let group = connect(&World::single(), Device::Cpu).unwrap();
    assert_eq!((group.rank(), group.world_size(), group.device()), (0, 1, Device::Cpu));
}

#[test]
fn gloo_conforms_with_2_ranks() {
    Ranks::start("conforms", 2).all_succeed();
}

#[test]
fn gloo_conforms_with_3_ranks() {
    Ranks::start("conforms", 3).all_succeed();
}

/// A world of one that does not take the short way.
#[test]
fn gloo_conforms_with_1_rank() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let world = world(0, 1, port.number(), 0);
    conforms(&connect_over(Fabric::Gloo, &world, Device::Cpu, IMPATIENT).unwrap(), folder.path());
}

/// One rank a GPU, as many as there are.
#[test]
fn nccl_conforms() {
    match gpus() {
        0 => println!("skipped: NCCL needs a GPU and a libtorch with CUDA, neither of which is here"),
        gpus => Ranks::start("nccl_conforms", gpus).all_succeed(),
    }
}

/// Tensors of one card through the host.
#[test]
fn gloo_conforms_with_2_ranks_on_one_gpu() {
    match gpus() {
        0 => println!("skipped: no GPU here"),
        _ => Ranks::start("gloo_conforms_on_one_gpu", 2).all_succeed(),
    }
}

#[test]
fn a_peer_that_is_killed_in_a_backward_pass_is_an_error_and_no_hang() {
    Ranks::start("peer_is_killed_in_backward", 3).all_succeed_but_killed(1);
}

#[test]
fn ranks_that_train_other_parameters_are_told_so() {
    Ranks::start("parameters_differ", 2).all_succeed();
}

#[test]
fn ranks_listen_on_loopback_only() {
    Ranks::start("listens_on_loopback", 2).all_succeed();
}

#[test]
fn a_killed_peer_is_an_error_and_no_hang() {
    Ranks::start("peer_is_killed", 3).all_succeed_but_killed(1);
}

#[test]
fn ranks_that_outlive_another_meet_again_at_once() {
    Ranks::start("peer_is_replaced", 3).all_succeed_but_killed(1);
}

#[test]
fn who_leaves_waits_for_no_peer() {
    Ranks::start("leaves_a_peer_that_lives", 2).all_succeed();
}

#[test]
fn a_silent_peer_is_a_timeout() {
    Ranks::start("peer_is_silent", 2).all_succeed();
}

#[test]
fn a_rank_that_never_comes_is_a_timeout() {
    let hasty = Timeouts { init: Duration::from_secs(2), operation: Duration::from_secs(2) };
    let started = Instant::now();
    let error = connect_within(&world(0, 2, free_port().number(), 0), Device::Cpu, hasty).err().unwrap();
    let CommError::TimedOut { rank: 0, operation: Operation::Rendezvous, .. } = error else {
        panic!("{error}")
    };
    assert!(started.elapsed() < Duration::from_secs(15));
}

/// Rank 1's error where rank 0 is to be met at `host`, and how long it took.
fn cannot_join(host: &str) -> (String, Duration) {
    let hasty = Timeouts { init: Duration::from_secs(2), operation: Duration::from_secs(2) };
    let port = free_port();
    let world = World { master_addr: host.into(), ..world(1, 2, port.number(), 0) };
    let started = Instant::now();
    let error = connect_within(&world, Device::Cpu, hasty).err().unwrap();
    assert!(matches!(&error, CommError::Unreachable { rank: 1, seconds: 2, .. }), "{error}");
    (error.to_string(), started.elapsed())
}

/// Row T2 of the fault matrix: address, answer of the name server, error number, own interfaces, what to do.
#[test]
fn a_meeting_place_that_cannot_be_reached_is_explained() {
    let own = "this machine has lo 127.0.0.1";
    for (host, parts) in [
        ("127.0.0.1", ["127.0.0.1:", "nobody listens there", "os error 111", own]),
        ("no-such-host.invalid", ["no-such-host.invalid:", "has no address", "check MASTER_ADDR", own]),
    ] {
        let (message, took) = cannot_join(host);
        for part in parts {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
        assert!(took < Duration::from_secs(15), "{host}: {took:?}");
    }
}

#[test]
fn rank_0_on_another_machines_address_is_told_its_own() {
    // TEST-NET-3 (RFC 5737) belongs to nobody.
    let world = World { master_addr: "203.0.113.1".into(), ..world(0, 2, free_port().number(), 0) };
    let started = Instant::now();
    let error = connect_within(&world, Device::Cpu, IMPATIENT).err().unwrap();
    assert!(matches!(error, CommError::Address { rank: 0, .. }), "{error}");
    let message = error.to_string();
    for part in ["203.0.113.1:", "not of this machine", "lo 127.0.0.1", "os error 99"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let started = Instant::now();
    let error = connect_within(&world(0, 2, port, 0), Device::Cpu, IMPATIENT).err().unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(matches!(&error, CommError::Address { address, .. } if *address == format!("127.0.0.1:{port}")));
    let holder = format!("process {} (", std::process::id());
    assert!(error.to_string().contains(&holder), "row T1: {error}");
}

/// torchrun's agent serves one store for all restarts.
#[test]
fn a_restart_in_an_old_store_meets_no_old_keys() {
    let agent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = agent.local_addr().unwrap().port();
    let _store = Store::serve(agent, 1, Duration::from_secs(20)).unwrap();
    for generation in 0..2 {
        Ranks::start_at("conforms_under_torchrun", 2, port, generation).all_succeed();
    }
}

// ---- one rank

#[test]
#[ignore = "one rank of the tests above, which start it"]
fn rank_process() {
    let Some(role) = std::env::var_os(RANK) else { return };
    let role = role.into_string().unwrap();
    let parts: Vec<&str> = role.splitn(6, ' ').collect();
    let number = |i: usize| parts[i].parse::<usize>().unwrap();
    let mut world = world(number(1), number(2), number(3) as u16, number(4) as u64);
    let folder = PathBuf::from(parts[5]);
    if parts[0] == "conforms_under_torchrun" {
        world.source = Source::Torchrun;
    }
    let (fabric, device) = match parts[0] {
        "nccl_conforms" => (Fabric::Nccl, Device::Cuda(world.local_rank)),
        "gloo_conforms_on_one_gpu" => (Fabric::Gloo, Device::Cuda(0)),
        _ => (Fabric::Gloo, Device::Cpu),
    };
    let group: Box<dyn ProcessGroup> = Box::new(connect_over(fabric, &world, device, IMPATIENT).unwrap());
    match parts[0] {
        "conforms" | "conforms_under_torchrun" | "nccl_conforms" | "gloo_conforms_on_one_gpu" => {
            conforms(group.as_ref(), &folder);
        }
        "peer_is_killed_in_backward" => peer_is_killed_in_backward(group.as_ref()),
        "parameters_differ" => parameters_differ(group.as_ref()),
        "listens_on_loopback" => listens_on_loopback(group.as_ref()),
        "peer_is_killed" => peer_is_killed(group.as_ref()),
        "peer_is_replaced" => peer_is_replaced(group.as_ref(), &folder),
        "peer_is_silent" => peer_is_silent(group.as_ref(), &folder),
        "leaves_a_peer_that_lives" => leaves_a_peer_that_lives(group, &folder),
        other => panic!("no scenario {other}"),
    }
}

fn listens_on_loopback(group: &dyn ProcessGroup) {
    let own: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut listening = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A = LISTEN), inode.
            if fields[3] == "0A" && own.iter().any(|inode| inode == fields[9]) {
                listening.push(fields[1].split(':').next().unwrap().to_owned());
            }
        }
    }
    // The store on rank 0; Gloo's own sockets close once the ranks are connected, or listen here too.
    assert!(group.rank() != 0 || !listening.is_empty(), "rank 0 serves the store");
    assert!(listening.iter().all(|address| address == "0100007F"), "{listening:?}");
    group.barrier().unwrap();
}

fn peer_is_killed(group: &dyn ProcessGroup) {
    if group.rank() == 1 {
        let own = std::process::id().to_string();
        Command::new("sh").args(["-c", "kill -9 \"$1\"", "sh", &own]).status().unwrap();
    }
    let started = Instant::now();
    let mut tensor = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
    let error = group.all_reduce_sum(&mut tensor).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    let CommError::PeerGone { rank, operation: Operation::AllReduce, detail } = error else {
        panic!("rank {}: {error}", group.rank());
    };
    assert_eq!(rank, group.rank());
    assert!(detail.contains("127.0.0.1"), "names the connection: {detail}");
}

const REDUCE: ReduceOptions = ReduceOptions { bucket_bytes: 1 << 16, dtype: GradientDtype::Fp32 };

fn peer_is_killed_in_backward(group: &dyn ProcessGroup) {
    let leaf = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut reducer = group.reducer(&[leaf.shallow_clone()], REDUCE).unwrap();
    if group.rank() == 1 {
        let own = std::process::id().to_string();
        Command::new("sh").args(["-c", "kill -9 \"$1\"", "sh", &own]).status().unwrap();
    }
    let started = Instant::now();
    let error = reducer.reduce(&leaf.sum(Kind::Float), &|| ()).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    let CommError::PeerGone { rank, operation: Operation::Reduce, .. } = error else {
        panic!("rank {}: {error}", group.rank());
    };
    assert_eq!(rank, group.rank());
}

/// Rank 1 dies, the other two leave what is under way and are a world of two, in the same processes.
fn peer_is_replaced(group: &dyn ProcessGroup, folder: &Path) {
    let leaf = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut reducer = group.reducer(&[leaf.shallow_clone()], REDUCE).unwrap();
    if group.rank() == 1 {
        let own = std::process::id().to_string();
        Command::new("sh").args(["-c", "kill -9 \"$1\"", "sh", &own]).status().unwrap();
    }
    let started = Instant::now();
    reducer.reduce(&leaf.sum(Kind::Float), &|| ()).unwrap_err();
    drop(reducer);
    group.abort();
    assert!(group.barrier().is_err(), "it is of no more use");
    let (new, port) = (folder.join("port.new"), folder.join("port"));
    let free = (group.rank() == 0).then(free_port);
    if let Some(free) = &free {
        fs::write(&new, free.number().to_string()).and_then(|()| fs::rename(&new, &port)).unwrap();
    }
    while !port.exists() && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let port = fs::read_to_string(port).unwrap().parse().unwrap();
    let again = connect_within(&world(group.rank() / 2, 2, port, 1), Device::Cpu, IMPATIENT).unwrap();
    let mut sum = Tensor::ones([3], (Kind::Float, Device::Cpu));
    again.all_reduce_sum(&mut sum).unwrap();
    assert_eq!(sum.double_value(&[2]), 2.0);
    assert!(started.elapsed() < IMPATIENT.operation, "{:?}: nobody waited for a timeout", started.elapsed());
}

fn parameters_differ(group: &dyn ProcessGroup) {
    let width = 3 + group.rank() as i64;
    let leaf = Tensor::ones([width], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    // Rank 0's are the measure, and it is told by the others' end.
    match group.reducer(&[leaf], REDUCE) {
        Ok(_) => assert_eq!(group.rank(), 0),
        Err(error) => assert!(error.to_string().contains("sizes"), "{error}"),
    }
}

/// Lives, and does nothing, until a peer has written this file.
fn await_file(path: &Path) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !path.exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Rank 0 leaves while it waits for a message of rank 1, which lives, sends none and closes nothing. A rank that lost another
/// one of three left so, and stayed in the end of its group: the others met without it.
fn leaves_a_peer_that_lives(group: Box<dyn ProcessGroup>, folder: &Path) {
    let left = folder.join("left");
    if group.rank() == 1 {
        return await_file(&left);
    }
    let [own, room] = [[1], [2]].map(|shape| Tensor::ones(shape, (Kind::Float, Device::Cpu)));
    let gathering = group.start_all_gather(&own, &room).unwrap();
    std::thread::sleep(IMPATIENT.operation / 4);
    let started = Instant::now();
    group.abort();
    let error = gathering.finish().unwrap_err();
    drop(group);
    let waited = started.elapsed();
    fs::write(left, "").unwrap();
    assert!(waited < IMPATIENT.operation / 4, "{waited:?}: {error}");
}

fn peer_is_silent(group: &dyn ProcessGroup, folder: &Path) {
    let seen = folder.join("seen");
    if group.rank() == 1 {
        return await_file(&seen);
    }
    let started = Instant::now();
    let error = group.all_reduce_sum(&mut Tensor::from(1.0)).unwrap_err();
    let waited = started.elapsed();
    fs::write(seen, "").unwrap();
    assert!(matches!(error, CommError::TimedOut { rank: 0, operation: Operation::AllReduce, .. }), "{error}");
    assert!(waited >= IMPATIENT.operation && waited < 5 * IMPATIENT.operation, "{waited:?}");
}

fn gpus() -> usize {
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}
