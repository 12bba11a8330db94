//! Real processes as ranks: a test starts its own program once per rank, with [`RANK`] in the environment and the test
//! `rank_process` as what to run.

#[path = "../../../collectives/tests/processes/children.rs"]
mod children;

use std::time::Duration;

use children::Children;
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
    children: Children,
    /// Where they meet.
    _port: ReservedPort,
}

impl Ranks {
    pub fn start(role: &str, world_size: usize) -> Self {
        let port = ReservedPort::on("127.0.0.1").unwrap();
        let children = Children::start(world_size, |rank, command| {
            command.env(RANK, format!("{role} {rank} {world_size} {}", port.number()));
            command.env("OMP_NUM_THREADS", "1");
        });
        Self { children, _port: port }
    }

    pub fn all_succeed(mut self) {
        self.children.end(Duration::from_secs(120), None);
    }
}
