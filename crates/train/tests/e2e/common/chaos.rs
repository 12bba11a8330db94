//! Faults at random moments of a tiny run, each followed by a comparison with the run that nobody disturbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use launch::WorkerPhase;
use monitor::{EvalFile, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Course, Launch, Page, Running, TinyWorld, course};

/// Three ranks: a fault of one leaves two that must agree.
const RANKS: usize = 3;
const SETS: [&str; 6] = [
    "stage1.steps=36",
    "stage1.checkpoint_every_steps=5",
    "stage1.validate_every_steps=12",
    "stage2.steps=20",
    "stage2.checkpoint_every_steps=5",
    "distributed.recovery=\"restart\"",
];
/// As short as sleeps are: a tiny update takes some of them.
const MOMENT: Duration = Duration::from_micros(50);
/// Faults strike so many steps before a stage's end, so that there is a next step to wait for.
const MARGIN: u64 = 10;

/// Rows of the fault matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// SIGKILL to a random rank; the launcher starts all again. Seconds: to the next step.
    P1,
    /// SIGKILL to two of three ranks, or to all; the launcher starts all again. Seconds: to the next step.
    P2,
    /// SIGKILL to the launcher; launched again by hand. Seconds: until no worker is left.
    P3,
    /// SIGSTOP to a random rank; found within ten seconds and named with its phase, killed, started again. Seconds: until it
    /// is named.
    P4,
    /// A stop signal to the launcher or to one rank; launched again. Seconds: to exit code 75.
    P5,
    /// SIGKILL to a rank that has not updated its weights while another one has. Seconds: to the next step.
    P10,
}

impl Scenario {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "p1" => Some(Self::P1),
            "p2" => Some(Self::P2),
            "p3" => Some(Self::P3),
            "p4" => Some(Self::P4),
            "p5" => Some(Self::P5),
            "p10" => Some(Self::P10),
            _ => None,
        }
    }
}

/// What became of one fault.
#[derive(Debug)]
pub struct Trial {
    /// Where it struck.
    pub phase: Phase,
    pub step: u64,
    pub rank: usize,
    /// The run came to its end, by the way that the scenario names.
    pub recovered: bool,
    /// Every number of it is that of the undisturbed run, to the last bit.
    pub exact: bool,
    /// What went wrong.
    pub detail: String,
    /// As the scenario says.
    pub seconds: f64,
}

/// A world, and what an undisturbed run in it comes to.
pub struct Chaos {
    sets: [&'static str; 6],
    world: TinyWorld,
    course: Course,
    eval: EvalFile,
    random: u64,
}

impl Chaos {
    /// Runs that start all ranks again where one dies.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, SETS)
    }

    /// Runs whose ranks outlive each other.
    pub fn regrouping(seed: u64) -> Self {
        let mut sets = SETS;
        sets[5] = "distributed.recovery=\"regroup\"";
        Self::with(seed, sets)
    }

    fn with(seed: u64, sets: [&'static str; 6]) -> Self {
        let world = TinyWorld::new();
        Launch { ranks: RANKS, sets: &sets, ..world.run("undisturbed") }.done();
        let run = world.path("undisturbed");
        let (course, eval) = (course(&run), EvalFile::read(&run.join("eval.json")).unwrap());
        Self { sets, world, course, eval, random: seed }
    }

    /// One fault at a moment that the seed and the number of trials before it decide.
    pub fn trial(&mut self, scenario: Scenario) -> Trial {
        // A run in which the moment never came tells nothing: another one is begun.
        let struck = (0..10).find_map(|_| self.strike(scenario));
        struck.expect("ten runs in which no rank was caught between two updates")
    }

    /// `None` where the moment that the scenario waits for did not come.
    fn strike(&mut self, scenario: Scenario) -> Option<Trial> {
        let (phase, steps) = if self.draw(3) < 2 { (Phase::Stage1, 36) } else { (Phase::Stage2, 20) };
        // P10 needs many steps to catch one.
        let step = if scenario == Scenario::P10 { 1 } else { 1 + self.draw(steps - MARGIN) };
        let rank = self.draw(RANKS as u64) as usize;
        let (delay, choice) = (Duration::from_micros(self.draw(15_000)), self.draw(u64::MAX));
        let run = self.world.path("disturbed");
        let _ = fs::remove_dir_all(&run);
        let mut running = self.launch().start();
        running.wait_for_step(phase, step);
        thread::sleep(delay);
        let (recovered, seconds, mut detail) = match scenario {
            Scenario::P1 => self.until_it_goes_on(running, &[rank], Signal::SIGKILL),
            Scenario::P2 => {
                let ranks: Vec<usize> =
                    (0..RANKS).filter(|other| choice % 2 == 0 || *other != rank).collect();
                self.until_it_goes_on(running, &ranks, Signal::SIGKILL)
            }
            Scenario::P4 => self.until_it_is_named(running, rank),
            Scenario::P10 => match Self::stop_between_updates(&running, rank) {
                true => self.until_it_goes_on(running, &[rank], Signal::SIGKILL),
                false => {
                    running.signal(Signal::SIGKILL);
                    running.end();
                    return None;
                }
            },
            Scenario::P3 => self.without_launcher(running),
            Scenario::P5 => self.stopped(running, rank, choice),
        };
        let difference = if recovered { self.difference(&run) } else { Some("it did not end".into()) };
        let exact = difference.is_none();
        detail.extend(difference);
        Some(Trial { phase, step, rank, recovered, exact, detail, seconds })
    }

    fn launch(&self) -> Launch<'_> {
        Launch { ranks: RANKS, max_restarts: 3, sets: &self.sets, ..self.world.run("disturbed") }
    }

    /// Stops `rank` after it has sent the last message of a step and before it has said that its update is done, while another
    /// rank has gone on with its own. From where it averages gradients it moves in slow motion: it runs for a moment and is
    /// stopped while the others come as far as they can. Where it went past the place another step is tried.
    fn stop_between_updates(running: &Running, rank: usize) -> bool {
        let workers: Vec<Pid> = (0..RANKS).map(|rank| running.worker(rank)).collect();
        let pages: Vec<Page> = workers.iter().map(|worker| Page::of(*worker)).collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) && is_running(workers[rank]) {
            if !pages[rank].read().is_in(WorkerPhase::Reduce) {
                thread::sleep(MOMENT);
                continue;
            }
            kill(workers[rank], Signal::SIGSTOP).unwrap();
            // So that the others come as far as they can.
            thread::sleep(Duration::from_millis(10));
            let stopped = pages[rank].read();
            let is_ahead = |page: &Page| page.read().is_ahead_of(&stopped);
            if stopped.is_in(WorkerPhase::Reduce) && pages.iter().any(is_ahead) {
                return true;
            }
            kill(workers[rank], Signal::SIGCONT).unwrap();
            thread::sleep(MOMENT);
        }
        false
    }

    fn until_it_goes_on(&self, mut running: Running, ranks: &[usize], signal: Signal) -> (bool, f64, String) {
        let workers: Vec<Pid> = ranks.iter().map(|rank| running.worker(*rank)).collect();
        let start = Instant::now();
        workers.into_iter().for_each(|worker| kill(worker, signal).unwrap());
        let stderr = self.world.path("disturbed.stderr");
        running.wait_for("the next step", || {
            fs::read_to_string(&stderr).is_ok_and(|said| said.contains("going on: step"))
        });
        let seconds = start.elapsed().as_secs_f64();
        let ended = running.end();
        let named = ranks.iter().any(|rank| ended.stderr.contains(&format!("rank {rank} ")));
        let good = ended.code == Some(0) && named;
        (good, seconds, if good { String::new() } else { ended.stderr })
    }

    fn until_it_is_named(&self, mut running: Running, rank: usize) -> (bool, f64, String) {
        let worker = running.worker(rank);
        let page = Page::of(worker);
        let start = Instant::now();
        kill(worker, Signal::SIGSTOP).unwrap();
        // What it was doing is done: from here on the page stays as it is.
        thread::sleep(Duration::from_millis(20));
        let phase = page.read().name();
        let stderr = self.world.path("disturbed.stderr");
        running.wait_for("a line that names it", || {
            fs::read_to_string(&stderr).is_ok_and(|said| said.contains(" is stopped (SIGSTOP) in phase "))
        });
        let seconds = start.elapsed().as_secs_f64();
        let ended = running.end();
        let line = format!("rank {rank} is stopped (SIGSTOP) in phase {phase} of step ");
        let good = ended.code == Some(0) && seconds <= 10.0 && ended.stderr.contains(&line);
        let problem = || format!("{seconds:.1} s, wanted {line:?} within 10: {}", ended.stderr);
        (good, seconds, if good { String::new() } else { problem() })
    }

    fn without_launcher(&self, running: Running) -> (bool, f64, String) {
        let workers: Vec<Pid> = (0..RANKS).map(|rank| running.worker(rank)).collect();
        let start = Instant::now();
        running.signal(Signal::SIGKILL);
        let _ = running.end();
        while workers.iter().any(|worker| is_running(*worker)) && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(2));
        }
        let seconds = start.elapsed().as_secs_f64();
        let again = self.launch().end();
        let good = again.code == Some(0) && seconds <= 2.0;
        (good, seconds, if good { String::new() } else { again.stderr })
    }

    fn stopped(&self, running: Running, rank: usize, choice: u64) -> (bool, f64, String) {
        let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2];
        let signal = signals[(choice % 4) as usize];
        let start = Instant::now();
        match choice / 4 % 3 {
            0 => kill(running.worker(rank), signal).unwrap(),
            // As SLURM does.
            1 => [signal, Signal::SIGCONT].into_iter().for_each(|signal| running.signal(signal)),
            _ => running.signal(signal),
        }
        let ended = running.end();
        let seconds = start.elapsed().as_secs_f64();
        let again = self.launch().end();
        let good = ended.code == Some(75) && again.code == Some(0);
        (
            good,
            seconds,
            if good { String::new() } else { format!("{signal}: {}{}", ended.stderr, again.stderr) },
        )
    }

    /// Where the disturbed run differs from the other.
    fn difference(&self, run: &Path) -> Option<String> {
        let eval = match EvalFile::read(&run.join("eval.json")) {
            Ok(eval) => eval,
            Err(error) => return Some(error.to_string()),
        };
        if (&eval.retrieval, &eval.captions) != (&self.eval.retrieval, &self.eval.captions) {
            return Some("eval.json differs".into());
        }
        course(run).difference(&self.course)
    }

    /// A number below `below`: SplitMix64.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
