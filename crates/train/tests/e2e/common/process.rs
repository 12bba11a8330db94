//! The real programs: started, watched, killed, waited for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use monitor::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Page, TinyWorld, records};

/// Nothing that a tiny run is waited for takes so long, whatever came before.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user's command. It is another package's, so Cargo does not build it for these tests.
pub fn blip2() -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_blip2-worker")).with_file_name("blip2");
    assert!(path.is_file(), "{} is missing; build it with `cargo build --release --bins`", path.display());
    Command::new(path)
}

/// `blip2 launch` of a world's config.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub world: &'a TinyWorld,
    pub config: &'a str,
    pub run: &'a str,
    pub ranks: usize,
    pub max_restarts: u32,
    pub sets: &'a [&'a str],
}

/// What a launch left.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; a signal is none.
    pub code: Option<i32>,
    /// What a person would have seen.
    pub stderr: String,
    pub seconds: f64,
}

/// A launch that goes on; dropped, it is killed, and its workers with it.
pub struct Running {
    child: Child,
    run: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Launch<'_> {
    /// Launches and waits.
    pub fn end(&self) -> Ended {
        self.start().end()
    }

    /// Launches and waits for a good end.
    pub fn done(&self) -> Ended {
        let ended = self.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended
    }

    pub fn start(&self) -> Running {
        let stderr = self.world.path(&format!("{}.stderr", self.run));
        let mut command = blip2();
        command.args(["launch", self.config]).current_dir(self.world.path(""));
        command.args(["--nproc-per-node", &self.ranks.to_string()]);
        command.args(["--max-restarts", &self.max_restarts.to_string()]);
        command.args(["--set", &format!("run.dir={}", self.run)]);
        command.args(self.sets.iter().flat_map(|assignment| ["--set", assignment]));
        // Two ranks on two cores; tensors this small gain nothing from more threads.
        command.env("OMP_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        let started = Instant::now();
        Running { child: command.spawn().unwrap(), run: self.world.path(self.run), stderr, started }
    }
}

impl Running {
    /// Waits until `metrics.jsonl` holds this step.
    pub fn wait_for_step(&mut self, phase: Phase, step: u64) {
        let path = self.run.join("metrics.jsonl");
        self.wait_for(&format!("step {step} of {phase}"), || {
            path.is_file() && records(&path).iter().any(|record| record.phase == phase && record.step >= step)
        });
    }

    /// Waits until `look` says yes.
    pub fn wait_for(&mut self, what: &str, look: impl Fn() -> bool) {
        let asked = Instant::now();
        while !look() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the run ended ({ended:?}) before {what}: {}", self.said());
            assert!(asked.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}: {}", self.said());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// `kill -9` of one worker.
    pub fn kill_rank(&self, rank: usize) {
        kill(self.worker(rank), Signal::SIGKILL).unwrap();
    }

    /// A signal to `blip2`, as a scheduler sends it.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub fn end(mut self) -> Ended {
        let asked = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            assert!(asked.elapsed() < PATIENCE, "no end in {PATIENCE:?}: {}", self.said());
            thread::sleep(Duration::from_millis(2));
        };
        Ended { code, stderr: self.said(), seconds: self.started.elapsed().as_secs_f64() }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// The child whose environment says that it is this rank, or that was called to be it.
    pub fn worker(&self, rank: usize) -> Pid {
        let (parent, wanted) = (self.child.id().to_string(), format!("RANK={rank}"));
        let is_it = |process: &Path| {
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            // pid (name) state ppid ..
            let is_child = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&parent);
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            let has = |wanted: &[u8]| environment.split(|&byte| byte == 0).any(|variable| variable == wanted);
            let pid = || Pid::from_raw(process.file_name().unwrap().to_str().unwrap().parse().unwrap());
            is_child
                && match has(b"BLIP2_SPARE=1") {
                    true => Page::of(pid()).called() == Some(rank),
                    false => has(wanted.as_bytes()),
                }
        };
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let found = processes
            .filter(|process| is_it(process))
            .find_map(|process| process.file_name()?.to_str()?.parse().ok());
        Pid::from_raw(found.unwrap_or_else(|| panic!("rank {rank} does not run: {}", self.said())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
