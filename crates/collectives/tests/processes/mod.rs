//! Real processes as ranks: a test starts its own program once per rank, with [`RANK`] in the environment and the test
//! `rank_process` as what to run.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use launch::{ReservedPort, World};

/// `SCENARIO RANK WORLD_SIZE PORT GENERATION FOLDER`.
pub const RANK: &str = "BLIP2_TEST_RANK";

pub struct Ranks {
    children: Vec<Child>,
    /// Where they meet; `None` where somebody else listens.
    _port: Option<ReservedPort>,
    _folder: tempfile::TempDir,
}

impl Ranks {
    pub fn start(scenario: &str, world_size: usize) -> Self {
        let port = free_port();
        let mut ranks = Self::start_at(scenario, world_size, port.number(), 0);
        ranks._port = Some(port);
        ranks
    }

    pub fn start_at(scenario: &str, world_size: usize, port: u16, generation: u64) -> Self {
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
        Self { children: (0..world_size).map(start).collect(), _port: None, _folder: folder }
    }

    pub fn all_succeed(self) {
        self.end(None);
    }

    pub fn all_succeed_but_killed(self, killed: usize) {
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
