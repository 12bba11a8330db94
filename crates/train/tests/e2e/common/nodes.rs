//! Two nodes with a rank each: their launchers, and what the run that they share has written.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use monitor::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Launch, TinyWorld, blip2, course, records};

/// A launcher's lease.
pub const LEASE: Duration = Duration::from_secs(10);
/// More steps than are taken before a run is stopped.
const SETS: [&str; 3] =
    ["stage1.steps=100000", "stage1.checkpoint_every_steps=50", "stage1.validate_every_steps=100000"];
const PATIENCE: Duration = Duration::from_secs(120);

/// One run of two nodes.
#[derive(Clone, Copy)]
pub struct Meeting<'a> {
    pub world: &'a TinyWorld,
    pub run: &'a str,
}

/// The launcher of one node; dropped, it is killed.
pub struct Node<'a> {
    world: &'a TinyWorld,
    pub launcher: Child,
    stderr: String,
}

impl<'a> Meeting<'a> {
    /// Starts the launcher of node `rank`, by a command line `before` it where there is one. What it says goes to the file
    /// `stderr`.
    pub fn node(&self, rank: usize, rdzv: &str, before: &[String], stderr: &str) -> Node<'a> {
        let program = blip2().get_program().to_owned();
        let mut words = before.iter().map(Into::into).chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["launch", "config.toml", "--nnodes", "2", "--nproc-per-node", "1"]);
        command.args(["--node-rank", &rank.to_string(), "--rdzv", rdzv]);
        command.args(["--set", &format!("run.dir={}", self.run)]);
        command.args(SETS.iter().flat_map(|set| ["--set", set]));
        command.current_dir(self.world.path("")).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(self.world.path(stderr)).unwrap());
        Node { world: self.world, launcher: command.spawn().unwrap(), stderr: stderr.to_owned() }
    }

    /// The last step that the run has recorded.
    pub fn taken(&self) -> u64 {
        let metrics = self.world.path(self.run).join("metrics.jsonl");
        match metrics.is_file() {
            true => records(&metrics).last().map_or(0, |record| record.step),
            false => 0,
        }
    }

    /// All that the run has written, by name and length.
    pub fn written(&self) -> Vec<(String, u64)> {
        let run = self.world.path(self.run);
        let checkpoints = fs::read_dir(run.join("checkpoints/stage1")).unwrap();
        let mut all: Vec<_> =
            checkpoints.flatten().map(|entry| (entry.path().display().to_string(), 0)).collect();
        all.push(("metrics".into(), fs::metadata(run.join("metrics.jsonl")).unwrap().len()));
        all.sort();
        all
    }

    /// The first `steps` of stage 1 are those of a run of one node that nothing befell.
    pub fn assert_as_undisturbed(&self, steps: u64) {
        let mut whole = Launch { sets: &SETS, ..self.world.run("whole") }.start();
        whole.wait_for_step(Phase::Stage1, steps);
        whole.signal(Signal::SIGTERM);
        assert_eq!(whole.end().code, Some(75));
        let whole = course(&self.world.path("whole")).until(Phase::Stage1, steps);
        course(&self.world.path(self.run)).assert_same(&whole, self.run);
    }
}

impl Node<'_> {
    pub fn said(&self) -> String {
        fs::read_to_string(self.world.path(&self.stderr)).unwrap()
    }

    pub fn runs(&mut self) -> bool {
        self.launcher.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.launcher.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its exit code; a signal is none.
    pub fn end(&mut self) -> Option<i32> {
        let said = self.world.path(&self.stderr);
        let mut status = None;
        wait(
            || format!("end of a node: {}", fs::read_to_string(&said).unwrap()),
            || {
                status = self.launcher.try_wait().unwrap();
                status.is_some()
            },
        );
        status.unwrap().code()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let _ = self.launcher.kill().and_then(|()| self.launcher.wait());
    }
}

/// Waits until `look` says yes; `what` tells what it was that did not come.
pub fn wait(what: impl Fn() -> String, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < PATIENCE, "no {}", what());
        thread::sleep(Duration::from_millis(5));
    }
}
