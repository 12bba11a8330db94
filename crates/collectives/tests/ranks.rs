//! What every process group must do, alone and as real processes; and what happens when a peer does not.
//!
//! A test starts this very program once per rank, with [`RANK`] in its environment and [`rank_process`] as its test.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use collectives::{
    CommError, Operation, ProcessGroup, SoloGroup, Timeouts, all_reduce_mean_bucketed, connect,
    connect_within,
};
use launch::{Source, World};
use tch::{Device, Kind, Tensor};
use torch_bridge::Store;

/// `SCENARIO RANK WORLD_SIZE PORT GENERATION FOLDER`.
const RANK: &str = "BLIP2_TEST_RANK";
const IMPATIENT: Timeouts = Timeouts { init: Duration::from_secs(20), operation: Duration::from_secs(2) };

// ---- the suite: a new backend is one more test, not a new suite

fn conforms(group: &dyn ProcessGroup, folder: &Path) {
    gathers_in_rank_order(group);
    sums(group);
    broadcasts(group);
    barrier_waits_for_all(group, folder);
    averages_in_buckets(group);
}

fn gathers_in_rank_order(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as i64, group.world_size() as i64);
    let own = Tensor::from_slice(&[rank as f32, rank as f32 + 0.5]).view([2, 1]).set_requires_grad(true);
    let gathered = group.all_gather(&own).unwrap();
    assert_eq!(gathered.size(), [2 * n, 1]);
    let expected: Vec<f32> = (0..n).flat_map(|r| [r as f32, r as f32 + 0.5]).collect();
    assert_eq!(Vec::<f32>::try_from(gathered.view([-1])).unwrap(), expected);
    assert!(!gathered.requires_grad(), "gathered is detached");
    let _ = gathered.shallow_clone().fill_(-1.0);
    assert_eq!(own.double_value(&[0, 0]), rank as f64, "gathered is a copy");

    let scalar = group.all_gather(&Tensor::from(rank)).unwrap();
    assert_eq!(Vec::<i64>::try_from(scalar).unwrap(), (0..n).collect::<Vec<_>>());

    let strided = Tensor::from_slice(&[rank, 10, 20, 30]).view([2, 2]).transpose(0, 1);
    let gathered = group.all_gather(&strided).unwrap();
    let expected: Vec<i64> = (0..n).flat_map(|r| [r, 20, 10, 30]).collect();
    assert_eq!(Vec::<i64>::try_from(gathered.view([-1])).unwrap(), expected);
}

fn sums(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as f64, group.world_size() as f64);
    let expected = n * (n + 1.0) / 2.0;
    for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16] {
        let mut tensor = Tensor::from(rank + 1.0).to_kind(kind);
        group.all_reduce_sum(&mut tensor).unwrap();
        assert_eq!((tensor.kind(), tensor.double_value(&[])), (kind, expected));
    }
    let whole = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
    let mut column = whole.select(1, 1);
    let _ = column.fill_(rank + 1.0);
    group.all_reduce_sum(&mut column).unwrap();
    let e = expected as f32;
    assert_eq!(
        Vec::<f32>::try_from(whole.view([-1])).unwrap(),
        [0.0, e, 0.0, e, 0.0, e],
        "only the view is summed"
    );
    let mut leaf = Tensor::from(rank as f32 + 1.0).set_requires_grad(true);
    group.all_reduce_sum(&mut leaf).unwrap();
    assert!(leaf.requires_grad() && leaf.is_leaf() && leaf.double_value(&[]) == expected);
}

fn broadcasts(group: &dyn ProcessGroup) {
    for root in 0..group.world_size() {
        let mut tensor = Tensor::from_slice(&[group.rank() as i64, 7]);
        group.broadcast(&mut tensor, root).unwrap();
        assert_eq!(Vec::<i64>::try_from(tensor).unwrap(), [root as i64, 7]);
    }
}

fn barrier_waits_for_all(group: &dyn ProcessGroup, folder: &Path) {
    let here = |rank: usize| folder.join(format!("before_barrier_{rank}"));
    // The last rank comes late, so that a barrier that waits for nobody is found out.
    std::thread::sleep(Duration::from_millis(100 * group.rank() as u64));
    fs::write(here(group.rank()), "").unwrap();
    group.barrier().unwrap();
    assert!((0..group.world_size()).all(|rank| here(rank).exists()));
}

fn averages_in_buckets(group: &dyn ProcessGroup) {
    let (rank, n) = (group.rank() as f64, group.world_size() as f64);
    let shapes: [(&[i64], Kind); 4] =
        [(&[5, 3], Kind::Float), (&[], Kind::Float), (&[4], Kind::Double), (&[2, 2], Kind::Float)];
    let tensors: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, (shape, kind))| Tensor::full(*shape, rank + i as f64, (*kind, Device::Cpu)))
        .collect();
    let strided = tensors[3].transpose(0, 1);
    let tensors: Vec<Tensor> = tensors.into_iter().chain([strided]).collect();
    let bytes = all_reduce_mean_bucketed(group, &tensors[..3], 40).unwrap();
    assert_eq!(bytes, 4 * 16 + 8 * 4);
    for (i, tensor) in tensors[..3].iter().enumerate() {
        let mean = (n - 1.0) / 2.0 + i as f64;
        assert_eq!(
            (tensor.min().double_value(&[]), tensor.max().double_value(&[])),
            (mean, mean),
            "tensor {i}"
        );
    }
    assert_eq!(all_reduce_mean_bucketed(group, &tensors[4..], 1 << 20).unwrap(), 16, "a strided tensor");
    assert_eq!(tensors[3].max().double_value(&[]), (n - 1.0) / 2.0 + 3.0);
    assert_eq!(all_reduce_mean_bucketed(group, &[], 1 << 20).unwrap(), 0);
}

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

#[test]
fn ranks_listen_on_loopback_only() {
    Ranks::start("listens_on_loopback", 2).all_succeed();
}

#[test]
fn a_killed_peer_is_an_error_and_no_hang() {
    Ranks::start("peer_is_killed", 3).all_succeed_but_killed(1);
}

#[test]
fn a_silent_peer_is_a_timeout() {
    Ranks::start("peer_is_silent", 2).all_succeed();
}

#[test]
fn a_rank_that_never_comes_is_a_timeout() {
    let hasty = Timeouts { init: Duration::from_secs(2), operation: Duration::from_secs(2) };
    for rank in [0, 1] {
        let started = Instant::now();
        let error = connect_within(&world(rank, 2, free_port(), 0), Device::Cpu, hasty).err().unwrap();
        let CommError::TimedOut { rank: named, operation: Operation::Rendezvous, .. } = error else {
            panic!("rank {rank}: {error}");
        };
        assert_eq!(named, rank);
        assert!(started.elapsed() < Duration::from_secs(15), "rank {rank}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = connect_within(&world(0, 2, port, 0), Device::Cpu, IMPATIENT).err().unwrap();
    assert!(matches!(&error, CommError::Address { address, .. } if *address == format!("127.0.0.1:{port}")));
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
    let group = connect_within(&world, Device::Cpu, IMPATIENT).unwrap();
    match parts[0] {
        "conforms" | "conforms_under_torchrun" => conforms(group.as_ref(), &folder),
        "listens_on_loopback" => listens_on_loopback(group.as_ref()),
        "peer_is_killed" => peer_is_killed(group.as_ref()),
        "peer_is_silent" => peer_is_silent(group.as_ref(), &folder),
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

fn peer_is_silent(group: &dyn ProcessGroup, folder: &Path) {
    let seen = folder.join("seen");
    if group.rank() == 1 {
        let patience = Instant::now() + Duration::from_secs(20);
        while !seen.exists() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        return;
    }
    let started = Instant::now();
    let error = group.all_reduce_sum(&mut Tensor::from(1.0)).unwrap_err();
    let waited = started.elapsed();
    fs::write(seen, "").unwrap();
    assert!(matches!(error, CommError::TimedOut { rank: 0, operation: Operation::AllReduce, .. }), "{error}");
    assert!(waited >= IMPATIENT.operation && waited < 5 * IMPATIENT.operation, "{waited:?}");
}

// ---- starting ranks

struct Ranks {
    children: Vec<Child>,
    _folder: tempfile::TempDir,
}

impl Ranks {
    fn start(scenario: &str, world_size: usize) -> Self {
        Self::start_at(scenario, world_size, free_port(), 0)
    }

    fn start_at(scenario: &str, world_size: usize, port: u16, generation: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |rank| {
            let role =
                format!("{scenario} {rank} {world_size} {port} {generation} {}", folder.path().display());
            Command::new(std::env::current_exe().unwrap())
                .args(["rank_process", "--exact", "--ignored", "--nocapture"])
                .env(RANK, role)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        Self { children: (0..world_size).map(start).collect(), _folder: folder }
    }

    fn all_succeed(self) {
        self.end(None);
    }

    fn all_succeed_but_killed(self, killed: usize) {
        self.end(Some(killed));
    }

    fn end(mut self, killed: Option<usize>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for (rank, child) in self.children.iter_mut().enumerate() {
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < deadline, "rank {rank} hangs");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert_eq!(status.success(), Some(rank) != killed, "rank {rank}: {status}");
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn world(rank: usize, world_size: usize, master_port: u16, generation: u64) -> World {
    let local = World::single();
    World {
        rank,
        local_rank: rank,
        world_size,
        local_world_size: world_size,
        master_port,
        generation,
        ..local
    }
}
