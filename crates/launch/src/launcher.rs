//! The loop around the decisions: start, wait, hand on signals, end, report, start again.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::command::Generation;
use crate::coordinator::{News, Place};
use crate::decide::{Action, Bond, End, Fleet, Policy, decide};
use crate::failure::{FAILURE, Failure};
use crate::fleet::Processes;
use crate::meeting::{Meeting, Next, Opened, Outcome, Settled, stop_signal};
use crate::nodes::{Nodes, run_id};
use crate::progress::monotonic_ns;
use crate::standing::Standing;
use crate::stop::StopSignals;
use crate::watch::{Sight, Watch};
use crate::watchdog::Patience;
use crate::{Exit, LaunchError, screen, with_causes};

/// How often signals to the launcher and progress are looked for; ends of workers wake it at once.
const TICK: Duration = Duration::from_millis(20);

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
    launch_unless(&StopSignals::install()?, spec, report)
}

/// As [`launch`], unless a signal has come since `signals` were installed: then nothing is started, and nothing is lost.
///
/// # Errors
/// As [`launch`].
pub fn launch_unless(
    signals: &StopSignals,
    spec: &LaunchSpec,
    report: &dyn Fn(&str),
) -> Result<Exit, LaunchError> {
    let outcome = launch_and_wait(signals, spec, report);
    screen::last_words();
    outcome
}

fn launch_and_wait(
    signals: &StopSignals,
    spec: &LaunchSpec,
    report: &dyn Fn(&str),
) -> Result<Exit, LaunchError> {
    if spec.nproc == 0 {
        return Err(LaunchError::Arguments {
            detail: "0 workers cannot do anything; start at least 1".into(),
        });
    }
    let logs = spec.run_dir.join("logs");
    fs::create_dir_all(&logs).map_err(|source| LaunchError::Write { path: logs.clone(), source })?;
    let (meeting, _lock) = match Meeting::open(spec, signals, report)? {
        Opened::Met(meeting, lock) => (meeting, lock),
        Opened::Exit(exit) => return Ok(exit),
    };
    let mut launcher = Launcher {
        spec,
        report,
        logs,
        clock: Instant::now(),
        signals,
        meeting,
        failed_ns: None,
        told_no_spare: false,
    };
    let outcome = launcher.run();
    launcher.meeting.leave();
    outcome
}

/// How a set of workers ended.
enum Ended {
    /// For good.
    For(Exit),
    /// In that generation; it is to be formed again.
    In(u32),
}

struct Launcher<'a> {
    spec: &'a LaunchSpec,
    report: &'a dyn Fn(&str),
    logs: PathBuf,
    /// All times in reports count from here.
    clock: Instant,
    signals: &'a StopSignals,
    meeting: Meeting,
    /// When the last generation failed, by the machine's monotonic clock.
    failed_ns: Option<u64>,
    /// It was said that no spare can be started.
    told_no_spare: bool,
}

impl Launcher<'_> {
    /// Runs sets of workers, one after the other, until one has ended for good.
    fn run(&mut self) -> Result<Exit, LaunchError> {
        let mut generation = 0;
        loop {
            let place = match self.meeting.next(self.spec, generation, self.signals, self.report)? {
                Next::Start(place) => place,
                Next::Exit(exit) => return Ok(exit),
            };
            match self.run_generation(place)? {
                Ended::For(exit) => return Ok(exit),
                Ended::In(last) => generation = last + 1,
            }
        }
    }

    /// Runs a set of workers, whose living ones may be called to further generations, until all have ended.
    fn run_generation(&mut self, mut place: Place) -> Result<Ended, LaunchError> {
        let mut processes = self.start(&place)?;
        let mut fleet = Fleet::new(self.spec.nproc, place.generation, None);
        let local = self.supervise(&mut processes, &mut fleet, &mut place)?;
        let cause = fleet.cause().map(|ended| place.first_rank + ended.rank);
        let outcome = Outcome { local, cause, saved: processes.saved() };
        let settled = self.meeting.settle(place.generation, &outcome, self.report);
        self.failed_ns = failed_ns(&fleet, self.clock);
        self.report_outcome(&settled, &fleet, &processes, &place);
        Ok(settled.exit.map_or(Ended::In(place.generation), Ended::For))
    }

    fn start(&self, place: &Place) -> Result<Processes, LaunchError> {
        let run_id = run_id(&self.spec.run_dir);
        Processes::start(self.spec, &self.generation(place, &run_id), &self.logs, self.clock)
    }

    fn generation<'a>(&self, place: &'a Place, run_id: &'a str) -> Generation<'a> {
        Generation { place, max_restarts: self.spec.max_restarts, nproc: self.spec.nproc, run_id }
    }

    fn supervise(
        &mut self,
        processes: &mut Processes,
        fleet: &mut Fleet,
        place: &mut Place,
    ) -> Result<Option<Exit>, LaunchError> {
        let mut watch = Watch::new(self.spec.patience, fleet.nproc, place.first_rank, self.failed_ns.take());
        loop {
            self.heed_signals(processes, fleet, place, &mut watch.others);
            for sight in watch.look(processes, fleet) {
                self.heed(sight, processes, fleet, place);
            }
            self.meeting.stands(place.generation, || watch.standing(processes));
            if fleet.bond != Bond::Spent && processes.have_met(place.generation) {
                fleet.bond = Bond::Met;
            }
            if fleet.bond == Bond::Met && watch.goes_on && fleet.ended.is_empty() {
                self.keep_spare(processes, place);
            }
            fleet.dying = !fleet.ended.is_empty() && processes.any_dying();
            let now = self.clock.elapsed();
            match decide(now, fleet, &Policy::default()) {
                Action::Wait => {}
                Action::Regroup => self.regroup(processes, fleet, place, &mut watch),
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

    /// A run goes on as well without a spare, so one that cannot be started is told once and done without.
    fn keep_spare(&mut self, processes: &mut Processes, place: &Place) {
        let run_id = run_id(&self.spec.run_dir);
        let kept = processes.keep_spare(self.spec, &self.generation(place, &run_id), &self.logs, self.clock);
        if let Err(error) = kept
            && !std::mem::replace(&mut self.told_no_spare, true)
        {
            let why = with_causes(&error);
            (self.report)(&format!("{why}; so no spare waits, and a rank that dies takes longer to replace"));
        }
    }

    /// Starts the dead again and calls the living to meet them, if a restart is left. Where the dead cannot be started beside
    /// the living, all are started again.
    fn regroup(
        &mut self,
        processes: &mut Processes,
        fleet: &mut Fleet,
        place: &mut Place,
        watch: &mut Watch,
    ) {
        let (next, spent) = match self.meeting.regroup(place, processes.saved()) {
            Ok(Some(next)) => next,
            Ok(None) => {
                fleet.bond = Bond::Spent;
                return;
            }
            Err(error) => return self.give_up_regroup(&error, fleet, Bond::Spent),
        };
        let failure = fleet.cause().map(|cause| Failure::new(fleet, cause, processes, place.first_rank));
        let failed_ns = failed_ns(fleet, self.clock);
        processes.call(&next);
        let run_id = run_id(&self.spec.run_dir);
        let replaced = processes.replace(self.spec, &self.generation(&next, &run_id), &self.logs, self.clock);
        *place = next;
        if let Err(error) = replaced {
            // The living wait where nobody comes.
            return self.give_up_regroup(&error, fleet, Bond::Called);
        }
        watch.regrouped(fleet.ended.iter().map(|ended| ended.rank).collect(), failed_ns);
        // What takes time comes last: they are on their way.
        if let Some(failure) = failure {
            let living = fleet.nproc - fleet.ended.len();
            let next = format!("starting again beside {living} that go on{}", self.of_restarts(spent));
            self.tell(&failure, &next);
        }
        *fleet = Fleet { bond: Bond::Called, ..Fleet::new(fleet.nproc, place.generation, None) };
    }

    /// Leaves the fleet as a failure that nobody outlives; the restart that the regroup took is given back.
    fn give_up_regroup(&mut self, error: &LaunchError, fleet: &mut Fleet, bond: Bond) {
        self.meeting.give_back();
        fleet.bond = bond;
        (self.report)(&format!("{}; so the others cannot go on either", with_causes(error)));
    }

    /// What was asked of this launcher: by a person or a scheduler, or by the coordinator, which also tells how far other
    /// nodes have come.
    fn heed_signals(
        &mut self,
        processes: &Processes,
        fleet: &mut Fleet,
        place: &Place,
        others: &mut Option<Standing>,
    ) {
        if let (None, Some(signal)) = (fleet.stop, self.signals.received()) {
            (self.report)(&format!("{signal} received; asking the workers to stop with a checkpoint"));
            stop(signal, processes, fleet);
        }
        match self.meeting.news(self.signals) {
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
                *others = standing;
            }
            _ => {}
        }
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
        let next = match settled.exit {
            None => {
                let spent = settled.spent.map_or(String::new(), |spent| self.of_restarts(spent));
                format!("starting all ranks again{spent}")
            }
            Some(Exit::GiveUp) if fleet.exit(cause) == Exit::Unavailable => {
                format!(
                    "nothing new was saved in the last tries, ending with exit code {}",
                    Exit::GiveUp.code()
                )
            }
            Some(exit) => format!("ending with exit code {}", exit.code()),
        };
        let failure = Failure::new(fleet, cause, processes, place.first_rank);
        match settled.exit {
            // The folder belongs to another run.
            Some(Exit::Busy) => self.say(&failure, &next),
            _ => self.tell(&failure, &next),
        }
    }

    fn of_restarts(&self, spent: u32) -> String {
        format!(" ({spent} of {} without a new checkpoint)", self.spec.max_restarts)
    }

    fn say(&self, failure: &Failure, next: &str) {
        (self.report)(&format!("{} after {:.1} s; {next}", failure.message, failure.seconds_since_start));
    }

    /// Says what failed and what comes next, and writes it down.
    fn tell(&self, failure: &Failure, next: &str) {
        self.say(failure, next);
        if let Some(last) = failure.last_words().filter(|_| failure.is_news) {
            (self.report)(&format!("rank {} said: {last}", failure.rank));
        }
        let path = self.spec.run_dir.join(FAILURE);
        let output = match failure.last_lines.is_empty() {
            true => "it said nothing".into(),
            false => format!("its whole log: {}", failure.log.display()),
        };
        match failure.write(&self.spec.run_dir) {
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
