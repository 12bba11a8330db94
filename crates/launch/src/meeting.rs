//! Where this node stands in a generation, and what becomes of a generation: alone, or agreed with other nodes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

use crate::budget::Budget;
use crate::command::Generation;
use crate::coordinator::{self, Coordinator, Hello, Invitation, Joined, Member, News, Place, Rules, exit_of};
use crate::failure;
use crate::launcher::LaunchSpec;
use crate::listen::listen;
use crate::nodes::{Nodes, Rdzv, run_id};
use crate::reserved_port::MeetingPlace;
use crate::run_lock::RunLock;
use crate::standing::Standing;
use crate::stop::StopSignals;
use crate::token::{hex, token};
use crate::world::LOOPBACK;
use crate::{Exit, LaunchError};

const TICK: Duration = Duration::from_millis(20);
/// After its workers have ended a node hears of the others within their grace.
const SETTLED: Duration = Duration::from_secs(60);
/// What the workers had is on the disk; the scheduler starts all nodes again.
const LOST: &str =
    "node 0 is gone before it said how the run ended; ending with exit code 75, so launch all nodes again";

/// Who decides for this node.
pub(crate) enum Meeting {
    /// It does.
    Alone { budget: Budget, meeting_place: MeetingPlace },
    /// The coordinator on node 0, which that node serves.
    Member { member: Member, stop_told: bool, coordinator: Option<Coordinator> },
}

/// What comes next for this node.
pub(crate) enum Next {
    Start(Place),
    Exit(Exit),
}

/// How a generation ended on this node.
pub(crate) struct Outcome {
    /// The run's exit if this node were alone; `None` for a failure that another try may not meet.
    pub local: Option<Exit>,
    /// The first failing rank of this node.
    pub cause: Option<usize>,
    /// The furthest checkpoint that one of its workers wrote.
    pub saved: u64,
}

/// How a generation ended for all nodes.
pub(crate) struct Settled {
    /// The whole run's exit, unless the set is formed again.
    pub exit: Option<Exit>,
    /// The first failing worker was one of this node.
    pub ours: bool,
    /// Restarts in a row without a new checkpoint, where this node decides.
    pub spent: Option<u32>,
}

/// How the nodes met.
pub(crate) enum Opened {
    /// The run folder is this launcher's for as long as the lock lives.
    Met(Meeting, Option<RunLock>),
    /// Not at all, and there is nothing to do.
    Exit(Exit),
}

impl Meeting {
    /// Takes the run folder, and with several nodes finds the coordinator or serves it. Without a number of its own a
    /// node leaves the lock to the workers' rank 0.
    pub(crate) fn open(
        spec: &LaunchSpec,
        signals: &StopSignals,
        report: &dyn Fn(&str),
    ) -> Result<Opened, LaunchError> {
        let nodes = &spec.nodes;
        match nodes.rdzv.as_ref().filter(|_| nodes.nnodes > 1) {
            Some(rdzv) => Self::of_several(spec, rdzv, signals, report),
            None => {
                let lock = take_folder(spec, 0)?;
                let budget = Budget::new(spec.max_restarts);
                let meeting_place = MeetingPlace::on(LOOPBACK.into(), (Ipv4Addr::LOCALHOST, 0).into());
                Ok(Opened::Met(Self::Alone { budget, meeting_place }, Some(lock)))
            }
        }
    }

    fn of_several(
        spec: &LaunchSpec,
        rdzv: &Rdzv,
        signals: &StopSignals,
        report: &dyn Fn(&str),
    ) -> Result<Opened, LaunchError> {
        let &Nodes { nnodes, node_rank, lease, join, .. } = &spec.nodes;
        // First, because who holds it may also listen at the meeting place.
        let mut lock = node_rank.map(|rank| take_folder(spec, rank)).transpose()?;
        let listening = listen(rdzv, node_rank, join, signals, report)?;
        let node_rank = if listening.is_some() { Some(0) } else { node_rank };
        if lock.is_none() {
            lock = node_rank.map(|rank| take_folder(spec, rank)).transpose()?;
        }
        let token = token(&spec.run_dir)?;
        let (run_id, args) = (run_id(&spec.run_dir), digest(spec));
        let version = env!("CARGO_PKG_VERSION").into();
        let hello = Hello { version, run_id, args, nnodes, node_rank, nproc: spec.nproc };
        let mut coordinator = None;
        if let Some(here) = listening {
            let rules = Rules { expected: hello.clone(), max_restarts: spec.max_restarts, lease, join };
            coordinator = Some(coordinator::serve(here.listener, token.clone(), rules, here.place)?);
            report(&format!("node 0 of {nnodes}: waiting for the others at {rdzv}"));
        }
        let invitation = Invitation { rdzv: rdzv.clone(), token, hello, lease, join };
        Ok(match invitation.join(signals)? {
            Joined::In(member) => Opened::Met(Self::Member { member, stop_told: false, coordinator }, lock),
            Joined::Out(exit) => {
                report(&match signals.received() {
                    Some(signal) => {
                        format!("{signal} received before the nodes had met; nothing was started")
                    }
                    None => {
                        format!("this run has just ended with exit code {}; nothing was started", exit.code())
                    }
                });
                Opened::Exit(exit)
            }
        })
    }

    /// Waits for this node's place in the next generation.
    pub(crate) fn next(
        &mut self,
        spec: &LaunchSpec,
        generation: u32,
        signals: &StopSignals,
        report: &dyn Fn(&str),
    ) -> Result<Next, LaunchError> {
        let (member, stop_told) = match self {
            Self::Member { member, stop_told, .. } => (member, stop_told),
            // Nothing runs, and what ran is on the disk.
            Self::Alone { .. } if signals.received().is_some() => return Ok(Next::Exit(Exit::Stopped)),
            Self::Alone { meeting_place, .. } => {
                let port = next_port(meeting_place)?;
                return Ok(Next::Start(alone(spec.nproc, generation, port)));
            }
        };
        loop {
            tell_stop(member, stop_told, signals);
            match member.news(TICK) {
                Some(News::Form(place)) => return Ok(Next::Start(place)),
                Some(News::NoPort { detail }) => {
                    let detail = format!("node 0 has no port where the ranks could meet: {detail}");
                    return Err(LaunchError::Meeting { detail, mendable: false });
                }
                Some(News::Over { code: Some(code), .. }) => return Ok(Next::Exit(exit_of(code))),
                Some(News::Lost) => {
                    report(LOST);
                    return Ok(Next::Exit(Exit::Stopped));
                }
                Some(News::Over { .. } | News::End { .. } | News::Stop { .. } | News::Others { .. })
                | None => {}
            }
        }
    }

    /// The place of this node in the generation that its living workers are called to, and how many restarts in a row that
    /// makes; `None` where none is left, and with several nodes, whose workers end together.
    pub(crate) fn regroup(&mut self, place: &Place, saved: u64) -> Result<Option<(Place, u32)>, LaunchError> {
        let Self::Alone { budget, meeting_place } = self else { return Ok(None) };
        let Ok(spent) = budget.restart(saved) else { return Ok(None) };
        let port = next_port(meeting_place)?;
        Ok(Some((alone(place.world_size, place.generation + 1, port), spent)))
    }

    /// The generation of the last [`Self::regroup`] did not come about.
    pub(crate) fn give_back(&mut self) {
        if let Self::Alone { budget, .. } = self {
            budget.give_back();
        }
    }

    /// What the coordinator wants of the generation that runs.
    pub(crate) fn news(&mut self, signals: &StopSignals) -> Option<News> {
        let Self::Member { member, stop_told, .. } = self else { return None };
        tell_stop(member, stop_told, signals);
        member.news(Duration::ZERO)
    }

    /// Says that a worker of this node was the first here to fail.
    pub(crate) fn failed(&self, generation: u32, rank: usize, exit: Exit, lost_peer: bool) {
        if let Self::Member { member, .. } = self {
            member.tell(&coordinator::FromNode::Failed { generation, rank, code: exit.code(), lost_peer });
        }
    }

    /// Says now and then how far the workers of this node have come, for nodes that wait for it.
    pub(crate) fn stands(&mut self, generation: u32, standing: impl FnOnce() -> Option<Standing>) {
        if let Self::Member { member, .. } = self {
            member.stands(generation, standing);
        }
    }

    /// Says that all workers of this node have ended, and waits for those of the others.
    pub(crate) fn settle(&mut self, generation: u32, outcome: &Outcome, report: &dyn Fn(&str)) -> Settled {
        let &Outcome { local, cause, saved } = outcome;
        let member = match self {
            Self::Member { member, .. } => member,
            Self::Alone { budget, .. } => {
                let (exit, spent) = match local.map_or_else(|| budget.restart(saved), Err) {
                    Ok(spent) => (None, Some(spent)),
                    Err(exit) => (Some(exit), None),
                };
                return Settled { exit, ours: cause.is_some(), spent };
            }
        };
        let code = local.unwrap_or(Exit::Unavailable).code();
        member.tell(&coordinator::FromNode::Ended { generation, code, saved });
        let unsettled = Settled { exit: Some(Exit::Stopped), ours: cause.is_some(), spent: None };
        let start = Instant::now();
        while start.elapsed() < SETTLED {
            match member.news(TICK) {
                Some(News::Over { generation: over, cause: first, code }) if over == generation => {
                    let ours = first.is_some() && first == cause;
                    return Settled { exit: code.map(exit_of), ours, spent: None };
                }
                Some(News::Lost) => {
                    report(LOST);
                    return unsettled;
                }
                _ => {}
            }
        }
        let seconds = SETTLED.as_secs();
        report(&format!("other nodes have not ended {seconds} s after this one; not waiting any longer"));
        unsettled
    }

    /// Leaves for good. Node 0 is the last to go, for the others hear from it how the run ended.
    pub(crate) fn leave(self) {
        let Self::Member { member, coordinator, .. } = self else { return };
        drop(member);
        if let Some(coordinator) = coordinator {
            coordinator.farewell();
        }
    }
}

/// The run folder for the launcher of a node, the first of which sets the last launch's report aside.
fn take_folder(spec: &LaunchSpec, node_rank: usize) -> Result<RunLock, LaunchError> {
    let lock = RunLock::of_launcher(&spec.run_dir, node_rank)?;
    if node_rank == 0 {
        failure::set_aside(&spec.run_dir);
    }
    Ok(lock)
}

fn tell_stop(member: &Member, told: &mut bool, signals: &StopSignals) {
    if let (false, Some(signal)) = (*told, signals.received()) {
        *told = true;
        member.tell(&coordinator::FromNode::Stop { signal: signal as i32 });
    }
}

/// The signal of a number that came over the wire, as mild as possible where there is none.
pub(crate) fn stop_signal(number: i32) -> Signal {
    Signal::try_from(number).unwrap_or(Signal::SIGTERM)
}

fn alone(nproc: usize, generation: u32, master_port: u16) -> Place {
    let master_addr = LOOPBACK.into();
    Place { generation, node_rank: 0, nnodes: 1, first_rank: 0, world_size: nproc, master_addr, master_port }
}

fn next_port(meeting_place: &mut MeetingPlace) -> Result<u16, LaunchError> {
    let refused = |source| LaunchError::System { action: "find a free port on 127.0.0.1", source };
    meeting_place.next_port().map_err(refused)
}

fn digest(spec: &LaunchSpec) -> String {
    let mut digest = Sha256::new();
    for arg in &spec.args {
        digest.update(arg.as_encoded_bytes());
        digest.update([0]);
    }
    hex(&digest.finalize()[..6])
}

/// What a launch would start on this node, as text, without starting it.
#[must_use]
pub fn dry_run(spec: &LaunchSpec) -> String {
    let nodes = &spec.nodes;
    let mut text = format!("run folder: {}\nrestarts: {}\n", spec.run_dir.display(), spec.max_restarts);
    let mut place = alone(spec.nproc, 0, 0);
    if let Some(rdzv) = nodes.rdzv.as_ref().filter(|_| nodes.nnodes > 1) {
        let number = nodes.node_rank.map_or("given out at the meeting".into(), |rank| rank.to_string());
        let _ = writeln!(text, "nodes: {}, meeting at {rdzv}; number of this one: {number}", nodes.nnodes);
        let node_rank = nodes.node_rank.unwrap_or(0);
        place = Place {
            node_rank,
            nnodes: nodes.nnodes,
            first_rank: node_rank * spec.nproc,
            world_size: nodes.nnodes * spec.nproc,
            master_addr: rdzv.host.clone(),
            ..place
        };
    }
    let generation = Generation {
        place: &place,
        max_restarts: spec.max_restarts,
        nproc: spec.nproc,
        run_id: &run_id(&spec.run_dir),
    };
    for local_rank in 0..spec.nproc {
        let variables =
            generation.environment(local_rank).into_iter().filter(|(name, _)| *name != "MASTER_PORT");
        let variables: Vec<String> = variables.map(|(name, value)| format!("{name}={value}")).collect();
        let args: Vec<_> = spec.args.iter().map(|arg| arg.to_string_lossy()).collect();
        let _ = writeln!(text, "{} {} {}", variables.join(" "), spec.worker.display(), args.join(" "));
    }
    text
}
