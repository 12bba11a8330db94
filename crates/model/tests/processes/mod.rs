//! Real processes as ranks: a test starts its own program once per rank, with [`RANK`] in the environment and the test
//! `rank_process` as what to run.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use collectives::{ProcessGroup, connect};
use launch::{ReservedPort, World};
use tch::Device;

/// What a rank is to do, and its numbers: `ROLE RANK WORLD_SIZE PORT`.
const RANK: &str = "BLIP2_TEST_RANK";

/// One rank, as its own process sees it.
pub struct Role {
    pub role: String,
    pub group: Box<dyn ProcessGroup>,
}

impl Role {
    /// What this process was started for; `None` in a run of all tests.
    pub fn of_this_process() -> Option<Self> {
        let text = std::env::var_os(RANK)?.into_string().unwrap();
        let words: Vec<&str> = text.rsplitn(4, ' ').collect();
        let [port, world_size, rank, role] = words[..] else { panic!("{text}") };
        let (rank, world_size) = (rank.parse().unwrap(), world_size.parse().unwrap());
        let master_port = port.parse().unwrap();
        let world = World { rank, local_rank: rank, world_size, master_port, ..World::single() };
        Some(Self { role: role.to_owned(), group: connect(&world, Device::Cpu).unwrap() })
    }
}

pub struct Ranks {
    children: Vec<Child>,
    /// Where they meet.
    _port: ReservedPort,
}

impl Ranks {
    pub fn start(role: &str, world_size: usize) -> Self {
        let port = ReservedPort::on("127.0.0.1").unwrap();
        let start = |rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["rank_process", "--exact", "--ignored", "--nocapture"])
                .env(RANK, format!("{role} {rank} {world_size} {}", port.number()))
                .env("OMP_NUM_THREADS", "1")
                .spawn()
                .unwrap()
        };
        Self { children: (0..world_size).map(start).collect(), _port: port }
    }

    pub fn all_succeed(mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        for (rank, child) in self.children.iter_mut().enumerate() {
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < deadline, "rank {rank} hangs");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert!(status.success(), "rank {rank}: {status}");
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
