//! The loop around the decisions: start, wait, hand on signals, end, report, start again.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::command::Generation;
use crate::coordinator::{News, Place};
use crate::decide::{Action, End, Fleet, Policy, decide};
use crate::failure::{FAILURE, Failure};
use crate::fleet::Processes;
use crate::meeting::{Meeting, Next, Outcome, Settled, stop_signal};
use crate::nodes::{Nodes, run_id};
use crate::progress::monotonic_ns;
use crate::standing::Standing;
use crate::stop::StopSignals;
use crate::watch::{Sight, Watch};
use crate::watchdog::Patience;
use crate::{Exit, LaunchError};

/// How often signals to the launcher and progress are looked for; ends of workers wake it at once.
const TICK: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(5);
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// One run, as this node sees it.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The program of a worker.
    pub worker: PathBuf,
    /// Its arguments, the same for all.
    pub args: Vec<OsString>,
    /// How many workers on this node.
    pub nproc: usize,
    /// The run folder, the same for all nodes: `failure.json` and `logs/rank-N.log` go there.
    pub run_dir: PathBuf,
    /// How many times in a row the set of workers is formed again after a failure that another try may not meet. A new
    /// checkpoint gives them back.
    pub max_restarts: u32,
    /// The nodes of the run.
    pub nodes: Nodes,
    /// How long a worker may make no progress.
    pub patience: Patience,
}

/// Starts the workers of this node and stays until all have ended; `report` gets a line for each thing a person should
/// know.
///
/// Workers see torchrun's environment. When one fails the others, on all nodes, get SIGTERM and, 5 seconds later,
/// SIGKILL. SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are handed on once; a second SIGINT ends the launcher, and with it the
/// workers ([`crate::die_with_parent`]). A worker that makes no progress for too long is killed and named. Must be called
/// on a thread that lives as long as the process.
///
/// Returns the meaning of the first failing worker's exit code ([`Exit::Unavailable`] for a signal or a code outside
/// the contract; [`Exit::GiveUp`] after three tries in a row without a new checkpoint), [`Exit::Stopped`] when the workers
/// ended because of a signal, [`Exit::Done`] when all are done.
///
/// # Errors
/// [`LaunchError::Arguments`] for no workers, [`LaunchError::Busy`] when another launcher holds the run folder,
/// [`LaunchError::Meeting`] when the nodes do not meet, [`LaunchError::Spawn`] when the program does not start,
/// [`LaunchError::Write`] when the run folder cannot be written.
pub fn launch(spec: &LaunchSpec, report: &dyn Fn(&str)) -> Result<Exit, LaunchError> {
    if spec.nproc == 0 {
        return Err(LaunchError::Arguments {
            detail: "0 workers cannot do anything; start at least 1".into(),
        });
    }
    let logs = spec.run_dir.join("logs");
    fs::create_dir_all(&logs).map_err(|source| LaunchError::Write { path: logs.clone(), source })?;
    let (meeting, _lock) = Meeting::open(spec, report)?;
    let mut launcher = Launcher {
        spec,
        report,
        logs,
        clock: Instant::now(),
        signals: StopSignals::install()?,
        meeting,
        failed_ns: None,
    };
    let mut generation = 0;
    loop {
        let place = match launcher.meeting.next(spec, generation, &launcher.signals)? {
            Next::Start(place) => place,
            Next::Exit(exit) => return Ok(exit),
        };
        if let Some(exit) = launcher.run_generation(&place)? {
            return Ok(exit);
        }
        generation += 1;
    }
}

struct Launcher<'a> {
    spec: &'a LaunchSpec,
    report: &'a dyn Fn(&str),
    logs: PathBuf,
    /// All times in reports count from here.
    clock: Instant,
    signals: StopSignals,
    meeting: Meeting,
    /// When the last generation failed, by the machine's monotonic clock.
    failed_ns: Option<u64>,
}

impl Launcher<'_> {
    /// Runs the set of workers once; `None` when it is to be formed again.
    fn run_generation(&mut self, place: &Place) -> Result<Option<Exit>, LaunchError> {
        let generation = Generation {
            place,
            max_restarts: self.spec.max_restarts,
            nproc: self.spec.nproc,
            run_id: &run_id(&self.spec.run_dir),
        };
        let mut processes = Processes::start(self.spec, &generation, &self.logs, self.clock)?;
        let mut fleet = Fleet::new(self.spec.nproc, place.generation, None);
        let local = self.supervise(&mut processes, &mut fleet, place)?;
        let cause = fleet.cause().map(|ended| place.first_rank + ended.rank);
        let saved = (0..self.spec.nproc).filter_map(|worker| processes.beat(worker)).map(|beat| beat.saved);
        let outcome = Outcome { local, cause, saved: saved.max().unwrap_or(0) };
        let settled = self.meeting.settle(place.generation, &outcome);
        self.failed_ns = failed_ns(&fleet, self.clock);
        self.report_outcome(&settled, &fleet, &processes, place);
        Ok(settled.exit)
    }

    fn supervise(
        &mut self,
        processes: &mut Processes,
        fleet: &mut Fleet,
        place: &Place,
    ) -> Result<Option<Exit>, LaunchError> {
        let policy = Policy { settle: SETTLE, grace: GRACE, short_grace: SHORT_GRACE };
        let mut watch = Watch::new(self.spec.patience, fleet.nproc, place.first_rank, self.failed_ns.take());
        loop {
            if let Some(others) = self.heed_signals(processes, fleet, place) {
                watch.others = Some(others);
            }
            for sight in watch.look(processes, fleet) {
                self.heed(sight, processes, fleet, place);
            }
            self.meeting.stands(place.generation, || watch.standing(processes));
            let now = self.clock.elapsed();
            match decide(now, fleet, &policy) {
                Action::Wait => {}
                Action::Terminate => {
                    self.tell_failure(fleet, place);
                    processes.signal(Signal::SIGTERM);
                    fleet.told_to_end = Some(now);
                }
                Action::Kill => processes.signal(Signal::SIGKILL),
                Action::Restart => {
                    self.tell_failure(fleet, place);
                    return Ok(None);
                }
                Action::Exit(exit) => {
                    self.tell_failure(fleet, place);
                    return Ok(Some(exit));
                }
            }
            fleet.ended.extend(processes.next_end(TICK)?);
        }
    }

    /// What was asked of this launcher: by a person or a scheduler, or by the coordinator, which also tells how far other
    /// nodes have come.
    fn heed_signals(&mut self, processes: &Processes, fleet: &mut Fleet, place: &Place) -> Option<Standing> {
        if let (None, Some(signal)) = (fleet.stop, self.signals.received()) {
            (self.report)(&format!("{signal} received; asking the workers to stop with a checkpoint"));
            stop(signal, processes, fleet);
        }
        match self.meeting.news(&self.signals) {
            Some(News::Stop { signal }) if fleet.stop.is_none() => {
                let signal = stop_signal(signal);
                (self.report)(&format!("{signal} received by another node; asking the workers to stop"));
                stop(signal, processes, fleet);
            }
            Some(News::End { generation })
                if generation == place.generation && fleet.told_to_end.is_none() =>
            {
                self.end(processes, fleet);
            }
            Some(News::Lost) if fleet.told_to_end.is_none() => {
                (self.report)("node 0 is gone; ending the workers");
                self.end(processes, fleet);
            }
            Some(News::Others { generation, standing }) if generation == place.generation => {
                return Some(standing);
            }
            _ => {}
        }
        None
    }

    fn end(&self, processes: &Processes, fleet: &mut Fleet) {
        processes.signal(Signal::SIGTERM);
        fleet.told_to_end = Some(self.clock.elapsed());
    }

    fn heed(&self, sight: Sight, processes: &Processes, fleet: &mut Fleet, place: &Place) {
        match sight {
            Sight::Line(line) => (self.report)(&line),
            Sight::Hang(hang) => {
                (self.report)(&format!("rank {} {hang}; killing it", place.first_rank + hang.worker));
                processes.kill(hang.worker);
                fleet.hang = Some(hang);
            }
        }
    }

    fn tell_failure(&self, fleet: &Fleet, place: &Place) {
        if let Some(cause) = fleet.cause() {
            let lost_peer = cause.end == End::Code(i32::from(Exit::Unavailable.code()));
            let rank = place.first_rank + cause.rank;
            self.meeting.failed(place.generation, rank, fleet.exit(cause), lost_peer);
        }
    }

    /// Says and writes down what ended a generation. A full disk must not hide the exit code, so it only adds a line.
    fn report_outcome(&self, settled: &Settled, fleet: &Fleet, processes: &Processes, place: &Place) {
        let run_dir = &self.spec.run_dir;
        let Some(cause) = fleet.cause().filter(|_| settled.ours && settled.exit != Some(Exit::Stopped))
        else {
            if settled.exit == Some(Exit::Done) {
                // What failed before has been overcome; the logs keep it.
                let _ = fs::remove_file(run_dir.join(FAILURE));
            }
            return;
        };
        let failure = Failure::new(fleet, cause, processes, place.first_rank);
        let next = match settled.exit {
            None => {
                let of = |spent| format!(" ({spent} of {} without a new checkpoint)", self.spec.max_restarts);
                format!("starting all ranks again{}", settled.spent.map_or(String::new(), of))
            }
            Some(Exit::GiveUp) if fleet.exit(cause) == Exit::Unavailable => {
                format!(
                    "nothing new was saved in the last tries, ending with exit code {}",
                    Exit::GiveUp.code()
                )
            }
            Some(exit) => format!("ending with exit code {}", exit.code()),
        };
        (self.report)(&format!("{} after {:.1} s; {next}", failure.message, failure.seconds_since_start));
        if settled.exit == Some(Exit::Busy) {
            // The folder belongs to another run.
            return;
        }
        let path = run_dir.join(FAILURE);
        let output = match failure.last_lines.is_empty() {
            true => "it said nothing".into(),
            false => format!("its whole log: {}", failure.log.display()),
        };
        match failure.write(run_dir) {
            Ok(()) => (self.report)(&format!("report: {}; {output}", path.display())),
            Err(error) => (self.report)(&format!("cannot write {}: {error}", path.display())),
        }
    }
}

fn stop(signal: Signal, processes: &Processes, fleet: &mut Fleet) {
    processes.signal(signal);
    fleet.stop = Some(signal as i32);
}

/// When the first worker of a generation failed, by the machine's monotonic clock.
fn failed_ns(fleet: &Fleet, clock: Instant) -> Option<u64> {
    let ago = clock.elapsed().saturating_sub(fleet.cause()?.at);
    Some(monotonic_ns().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX)))
}
