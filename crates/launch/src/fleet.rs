//! The processes of one generation, and nothing decided about them.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::LaunchError;
use crate::call::Call;
use crate::command::{Generation, worker_command};
use crate::coordinator::Place;
use crate::decide::{End, Ended};
use crate::launcher::LaunchSpec;
use crate::progress::{Beat, PROGRESS_PAGE, PageReader};
use crate::watchdog::Vital;
use crate::worker_log::WorkerLog;

/// How long the output of an ended worker may take to arrive.
const DRAIN: Duration = Duration::from_secs(1);

/// One process group of one worker and whatever it starts.
#[derive(Debug)]
struct Worker {
    child: Child,
    group: Pid,
    log: WorkerLog,
    page: PageReader,
    running: bool,
}

/// The workers of one generation. Dropping it kills those that still run.
#[derive(Debug)]
pub(crate) struct Processes {
    workers: Vec<Worker>,
    /// Has loaded what every rank needs, and waits to take the place of one that dies.
    spare: Option<Worker>,
    /// How many there were, and for which generation the last one was started.
    spares: u32,
    spare_since: Option<u32>,
    /// For the threads that watch workers, which know them by their process.
    sender: Sender<(Pid, Duration)>,
    ends: Receiver<(Pid, Duration)>,
}

impl Processes {
    /// Starts all workers of a generation; `clock` is the launcher's start.
    ///
    /// The calling thread must outlive them: the kernel ends a worker when the thread that started it ends.
    pub(crate) fn start(
        spec: &LaunchSpec,
        generation: &Generation<'_>,
        logs: &Path,
        clock: Instant,
    ) -> Result<Self, LaunchError> {
        let (sender, ends) = mpsc::channel();
        let workers = Vec::with_capacity(spec.nproc);
        let mut processes = Self { workers, spare: None, spares: 0, spare_since: None, sender, ends };
        for rank in 0..spec.nproc {
            let worker = processes.worker(spec, generation, rank, logs)?;
            let group = worker.group;
            processes.workers.push(worker);
            processes.watch(group, clock)?;
        }
        Ok(processes)
    }

    /// Starts a spare, once in a generation and only where none waits.
    pub(crate) fn keep_spare(
        &mut self,
        spec: &LaunchSpec,
        generation: &Generation<'_>,
        logs: &Path,
        clock: Instant,
    ) -> Result<(), LaunchError> {
        let since = Some(generation.place.generation);
        if self.spare.is_some() || self.spare_since == since {
            return Ok(());
        }
        (self.spares, self.spare_since) = (self.spares + 1, since);
        let log = WorkerLog::of_spare(logs, self.spares)?;
        let spare = start_worker(spec, generation.environment_of_spare(), None, log)
            .map_err(|source| LaunchError::Spawn { program: spec.worker.clone(), source })?;
        let group = spare.group;
        self.spare = Some(spare);
        // One whose end nobody sees would be called when it is long gone.
        self.watch(group, clock).inspect_err(|_| self.end_spare())
    }

    /// Puts workers of another generation in the places of those that have ended: the spare first, then new ones.
    pub(crate) fn replace(
        &mut self,
        spec: &LaunchSpec,
        generation: &Generation<'_>,
        logs: &Path,
        clock: Instant,
    ) -> Result<(), LaunchError> {
        for rank in 0..self.workers.len() {
            if self.workers[rank].running {
                continue;
            }
            if let Some(spare) = self.spare.take() {
                // A log that does not say where it goes on is no reason to do without the spare.
                let _ = spare.log.take_rank(logs, rank, generation.place.generation);
                spare.call(generation.place, rank);
                self.workers[rank] = spare;
                continue;
            }
            self.workers[rank] = self.worker(spec, generation, rank, logs)?;
            self.watch(self.workers[rank].group, clock)?;
        }
        Ok(())
    }

    fn worker(
        &self,
        spec: &LaunchSpec,
        generation: &Generation<'_>,
        rank: usize,
        logs: &Path,
    ) -> Result<Worker, LaunchError> {
        let place = generation.place;
        let log = WorkerLog::open(logs, place.first_rank + rank, place.generation)?;
        start_worker(spec, generation.environment(rank), Some(place.first_rank + rank), log)
            .map_err(|source| LaunchError::Spawn { program: spec.worker.clone(), source })
    }

    fn watch(&self, group: Pid, clock: Instant) -> Result<(), LaunchError> {
        watch(group, self.sender.clone(), clock)
            .map_err(|source| LaunchError::System { action: "start a thread to watch a worker", source })
    }

    /// The next end of a worker within `timeout`.
    pub(crate) fn next_end(&mut self, timeout: Duration) -> Result<Option<Ended>, LaunchError> {
        let Ok((group, at)) = self.ends.recv_timeout(timeout) else { return Ok(None) };
        let Some(rank) = self.workers.iter().position(|worker| worker.running && worker.group == group)
        else {
            // A spare has no part in the run: where it dies, the next rank that does is started anew.
            self.end_spare();
            return Ok(None);
        };
        let worker = &mut self.workers[rank];
        // Not yet collected, the dead worker still owns its number, so the signal reaches only what it left behind.
        let _ = killpg(worker.group, Signal::SIGKILL);
        let status = worker
            .child
            .wait()
            .map_err(|source| LaunchError::System { action: "collect a worker that ended", source })?;
        worker.running = false;
        worker.log.drain(DRAIN);
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => End::Code(code),
            (None, Some(signal)) => End::Signal(signal),
            (None, None) => End::Code(status.into_raw()),
        };
        Ok(Some(Ended { rank, end, at }))
    }

    /// Sends `signal` to the process groups of all workers that run.
    pub(crate) fn signal(&self, signal: Signal) {
        for worker in self.workers.iter().filter(|worker| worker.running) {
            let _ = killpg(worker.group, signal);
        }
    }

    /// Kills one worker and what it has started.
    pub(crate) fn kill(&self, rank: usize) {
        if let Some(worker) = self.workers.get(rank).filter(|worker| worker.running) {
            let _ = killpg(worker.group, Signal::SIGKILL);
        }
    }

    /// Calls the workers that run to the generation of `place`.
    pub(crate) fn call(&self, place: &Place) {
        for (rank, worker) in self.workers.iter().enumerate().filter(|(_, worker)| worker.running) {
            worker.call(place, rank);
        }
    }

    /// Whether all workers, those that have ended too, have met in `generation` and outlive the loss of one.
    pub(crate) fn have_met(&self, generation: u32) -> bool {
        self.workers.iter().all(|worker| worker.page.calls().has_met() == Some(u64::from(generation)))
    }

    /// Whether a worker has not ended.
    pub(crate) fn is_running(&self, rank: usize) -> bool {
        self.workers[rank].running
    }

    /// What a worker last said of its progress.
    pub(crate) fn beat(&self, rank: usize) -> Option<Beat> {
        self.workers[rank].page.read()
    }

    /// The furthest checkpoint that one of them wrote; 0 for none.
    pub(crate) fn saved(&self) -> u64 {
        self.workers.iter().filter_map(|worker| worker.page.read()).map(|beat| beat.saved).max().unwrap_or(0)
    }

    /// What the system says of a worker's main thread.
    pub(crate) fn vital(&self, rank: usize) -> Vital {
        match state_and_flags(self.workers[rank].group).0 {
            'T' | 't' => Vital::Stopped,
            'R' => Vital::Computes,
            _ => Vital::Waits,
        }
    }

    /// Whether a worker that has not ended was killed: a busy machine may take long over it.
    pub(crate) fn any_dying(&self) -> bool {
        self.workers.iter().any(|worker| worker.running && is_dying(worker.group))
    }

    /// How long a worker's main thread has been ready to run while other programs had the processors, since it started.
    pub(crate) fn queued(&self, rank: usize) -> Duration {
        let path = format!("/proc/{}/schedstat", self.workers[rank].group);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // Time on a processor, time in the queue, times that it ran.
        Duration::from_nanos(text.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0))
    }

    /// The log of a worker.
    pub(crate) fn log(&self, rank: usize) -> &WorkerLog {
        &self.workers[rank].log
    }

    fn end_spare(&mut self) {
        if let Some(mut spare) = self.spare.take() {
            let _ = killpg(spare.group, Signal::SIGKILL);
            let _ = spare.child.wait();
        }
    }
}

impl Worker {
    /// Calls it to the generation of `place` as worker `rank` of this node.
    fn call(&self, place: &Place, rank: usize) {
        let rank = u16::try_from(place.first_rank + rank).unwrap_or(u16::MAX);
        // Who does not hear it gives up and exits, and then all are started again.
        let _ = self.page.calls().call(Call { generation: place.generation, rank, port: place.master_port });
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end_spare();
        self.signal(Signal::SIGKILL);
        for worker in self.workers.iter_mut().filter(|worker| worker.running) {
            let _ = worker.child.wait();
        }
    }
}

/// What the kernel says of a process's main thread: its state, a blank for one that is gone, and its flags.
fn state_and_flags(pid: Pid) -> (char, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // pid (name) state ppid pgrp session tty tpgid flags ..
    let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let state = fields.next().and_then(|state| state.chars().next()).unwrap_or(' ');
    (state, fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or(0))
}

fn is_dying(pid: Pid) -> bool {
    /// SIGKILL in a set of pending signals.
    const KILLED: u64 = 1 << 8;
    /// The kernel's `PF_EXITING`.
    const EXITING: u64 = 4;
    let (state, flags) = state_and_flags(pid);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().filter_map(|line| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    matches!(state, 'Z' | 'X') || flags & EXITING != 0 || pending.into_iter().any(|set| set & KILLED != 0)
}

fn start_worker(
    spec: &LaunchSpec,
    environment: Vec<(&'static str, String)>,
    rank: Option<usize>,
    mut log: WorkerLog,
) -> io::Result<Worker> {
    let mut command = worker_command(&spec.worker);
    let page = PageReader::new()?;
    command.args(&spec.args).envs(environment).env(PROGRESS_PAGE, page.path());
    // A group of its own: Ctrl-C reaches the launcher alone, and a signal to the group reaches grandchildren too.
    command.process_group(0);
    log.connect(&mut command, rank)?;
    let mut child = command.spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    let pumped = log.pump(&mut child);
    let mut worker = Worker { child, group, log, page, running: true };
    if let Err(error) = pumped {
        let _ = worker.child.kill().and_then(|()| worker.child.wait());
        return Err(error);
    }
    Ok(worker)
}

/// Tells the time at which a worker ends, to the microsecond and in true order, without collecting it: only the
/// thread that also sends signals may do that, or a signal could reach a stranger with the same number.
fn watch(pid: Pid, ends: Sender<(Pid, Duration)>, clock: Instant) -> io::Result<()> {
    thread::Builder::new().name(format!("watch {pid}")).spawn(move || {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let _ = ends.send((pid, clock.elapsed()));
    })?;
    Ok(())
}
