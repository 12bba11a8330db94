//! A test's own program, once per rank; the tests of `model` start theirs by it too.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Processes by rank, which do not outlive this.
pub struct Children(Vec<Child>);

impl Children {
    /// Runs the test `rank_process`, which learns what to do from what `set_up` does to its command.
    pub fn start(world_size: usize, set_up: impl Fn(usize, &mut Command)) -> Self {
        let start = |rank| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["rank_process", "--exact", "--ignored", "--nocapture"]);
            set_up(rank, &mut command);
            command.spawn().unwrap()
        };
        Self((0..world_size).map(start).collect())
    }

    /// Waits until all have ended, all but `killed` well.
    pub fn end(&mut self, at_most: Duration, killed: Option<usize>) {
        let deadline = Instant::now() + at_most;
        for (rank, child) in self.0.iter_mut().enumerate() {
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

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
