//! The loop around the decisions: start, wait, hand on signals, end, report, start again.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::command::Generation;
use crate::decide::{Action, Fleet, Policy, decide};
use crate::failure::{FAILURE, Failure};
use crate::fleet::Processes;
use crate::stop::StopSignals;
use crate::world::LOOPBACK;
use crate::{Exit, LaunchError};

/// How often signals to the launcher are looked for; ends of workers wake it at once.
const TICK: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(5);
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// One run on this machine.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The program of a worker.
    pub worker: PathBuf,
    /// Its arguments, the same for all.
    pub args: Vec<OsString>,
    /// How many workers.
    pub nproc: usize,
    /// The run folder: `failure.json` and `logs/rank-N.log` go there.
    pub run_dir: PathBuf,
    /// How many times the set of workers is formed again after a failure that another try may not meet.
    pub max_restarts: u32,
}

/// Starts the workers and stays until all have ended; `report` gets a line for each thing a person should know.
///
/// Workers see torchrun's environment. When one fails the others get SIGTERM and, 5 seconds later, SIGKILL. SIGTERM,
/// SIGINT and SIGUSR1 are handed on once; a second SIGINT ends the launcher, and with it the workers
/// ([`crate::die_with_parent`]). Must be called on a thread that lives as long as the process.
///
/// Returns the meaning of the first failing worker's exit code ([`Exit::Unavailable`] for a signal or a code outside
/// the contract), [`Exit::Stopped`] when the workers ended because of a signal, [`Exit::Done`] when all are done.
///
/// # Errors
/// [`LaunchError::Arguments`] for no workers, [`LaunchError::Spawn`] when the program does not start,
/// [`LaunchError::Write`] when the run folder cannot be written.
pub fn launch(spec: &LaunchSpec, report: &dyn Fn(&str)) -> Result<Exit, LaunchError> {
    if spec.nproc == 0 {
        return Err(LaunchError::Arguments {
            detail: "0 workers cannot do anything; start at least 1".into(),
        });
    }
    let logs = spec.run_dir.join("logs");
    fs::create_dir_all(&logs).map_err(|source| LaunchError::Write { path: logs.clone(), source })?;
    let launcher = Launcher {
        spec,
        report,
        logs,
        clock: Instant::now(),
        signals: StopSignals::install()?,
        run_id: run_id(&spec.run_dir),
    };
    let mut restarts = 0;
    loop {
        match launcher.run_generation(restarts)? {
            Some(exit) => return Ok(exit),
            None => restarts += 1,
        }
    }
}

struct Launcher<'a> {
    spec: &'a LaunchSpec,
    report: &'a dyn Fn(&str),
    logs: PathBuf,
    /// All times in reports count from here.
    clock: Instant,
    signals: StopSignals,
    run_id: String,
}

impl Launcher<'_> {
    /// Runs the set of workers once; `None` when it is to be formed again.
    fn run_generation(&self, restarts: u32) -> Result<Option<Exit>, LaunchError> {
        let generation = Generation {
            number: restarts,
            max_restarts: self.spec.max_restarts,
            nproc: self.spec.nproc,
            master_port: free_port()?,
            run_id: &self.run_id,
        };
        let mut processes = Processes::start(self.spec, &generation, &self.logs, self.clock)?;
        let mut fleet = Fleet::new(self.spec.nproc, restarts, None);
        let exit = self.supervise(&mut processes, &mut fleet)?;
        self.report_outcome(exit, &fleet, &processes);
        Ok(exit)
    }

    fn supervise(&self, processes: &mut Processes, fleet: &mut Fleet) -> Result<Option<Exit>, LaunchError> {
        let policy = Policy {
            settle: SETTLE,
            grace: GRACE,
            short_grace: SHORT_GRACE,
            max_restarts: self.spec.max_restarts,
        };
        loop {
            if let (None, Some(signal)) = (fleet.stop, self.signals.received()) {
                (self.report)(&format!("{signal} received; asking the workers to stop with a checkpoint"));
                processes.signal(signal);
                fleet.stop = Some(signal as i32);
            }
            let now = self.clock.elapsed();
            match decide(now, fleet, &policy) {
                Action::Wait => {}
                Action::Terminate => {
                    processes.signal(Signal::SIGTERM);
                    fleet.told_to_end = Some(now);
                }
                Action::Kill => processes.signal(Signal::SIGKILL),
                Action::Restart => return Ok(None),
                Action::Exit(exit) => return Ok(Some(exit)),
            }
            fleet.ended.extend(processes.next_end(TICK)?);
        }
    }

    /// Says and writes down what ended a generation. A full disk must not hide the exit code, so it only adds a line.
    fn report_outcome(&self, exit: Option<Exit>, fleet: &Fleet, processes: &Processes) {
        let run_dir = &self.spec.run_dir;
        let Some(cause) = fleet.cause().filter(|_| exit != Some(Exit::Stopped)) else {
            if exit == Some(Exit::Done) {
                // What failed before has been overcome; the logs keep it.
                let _ = fs::remove_file(run_dir.join(FAILURE));
            }
            return;
        };
        let failure = Failure::new(fleet, cause, processes);
        let next = match exit {
            None => {
                format!("starting all ranks again ({} of {})", fleet.restarts + 1, self.spec.max_restarts)
            }
            Some(exit) => format!("ending with exit code {}", exit.code()),
        };
        (self.report)(&format!("{} after {:.1} s; {next}", failure.message, failure.seconds_since_start));
        if exit == Some(Exit::Busy) {
            // The folder belongs to another run.
            return;
        }
        let path = run_dir.join(FAILURE);
        let output = match failure.last_lines.is_empty() {
            true if cause.rank == 0 => "what it said stands above".into(),
            true => "it said nothing".into(),
            false => format!("its whole log: {}", failure.log.display()),
        };
        match failure.write(run_dir) {
            Ok(()) => (self.report)(&format!("report: {}; {output}", path.display())),
            Err(error) => (self.report)(&format!("cannot write {}: {error}", path.display())),
        }
    }
}

/// A port on loopback that is free now. Another process may take it first; then rank 0 says so and the next
/// generation gets another.
fn free_port() -> Result<u16, LaunchError> {
    TcpListener::bind((LOOPBACK, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| LaunchError::System { action: "find a free port on 127.0.0.1", source })
}

fn run_id(run_dir: &Path) -> String {
    run_dir.file_name().map_or_else(|| "blip2".into(), |name| name.to_string_lossy().into_owned())
}
