//! Real processes as ranks: a test starts its own program once per rank, with [`RANK`] in the environment and the test
//! `rank_process` as what to run.

mod children;

use std::process::Stdio;
use std::time::Duration;

use children::Children;
use launch::{ReservedPort, World};

/// `SCENARIO RANK WORLD_SIZE PORT GENERATION FOLDER`.
pub const RANK: &str = "BLIP2_TEST_RANK";
const AT_MOST: Duration = Duration::from_secs(60);

pub struct Ranks {
    children: Children,
    /// Where they meet; `None` where somebody else listens.
    _port: Option<ReservedPort>,
    _folder: tempfile::TempDir,
}

impl Ranks {
    pub fn start(scenario: &str, world_size: usize) -> Self {
        let port = free_port();
        let ranks = Self::start_at(scenario, world_size, port.number(), 0);
        Self { _port: Some(port), ..ranks }
    }

    pub fn start_at(scenario: &str, world_size: usize, port: u16, generation: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let children = Children::start(world_size, |rank, command| {
            let role =
                format!("{scenario} {rank} {world_size} {port} {generation} {}", folder.path().display());
            command.env(RANK, role).stdout(Stdio::null());
        });
        Self { children, _port: None, _folder: folder }
    }

    pub fn all_succeed(mut self) {
        self.children.end(AT_MOST, None);
    }

    pub fn all_succeed_but_killed(mut self, killed: usize) {
        self.children.end(AT_MOST, Some(killed));
    }
}

pub fn free_port() -> ReservedPort {
    ReservedPort::on("127.0.0.1").unwrap()
}

pub fn world(rank: usize, world_size: usize, master_port: u16, generation: u64) -> World {
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
