//! Where this node stands in a generation, and what becomes of a generation: alone, or agreed with other nodes.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

use crate::budget::Budget;
use crate::command::Generation;
use crate::coordinator::{self, Hello, Member, News, Place, Rules, exit_of};
use crate::launcher::LaunchSpec;
use crate::nodes::{Rdzv, run_id};
use crate::run_lock::RunLock;
use crate::standing::Standing;
use crate::stop::StopSignals;
use crate::world::LOOPBACK;
use crate::{Exit, LaunchError, environment};

/// Holds the token of a run of several nodes, where no shared run folder does.
const TOKEN: &str = "BLIP2_RDZV_TOKEN";
/// The token in the run folder, for who may read it.
const TOKEN_FILE: &str = ".rdzv-token";
const TICK: Duration = Duration::from_millis(20);
/// After its workers have ended a node hears of the others within their grace.
const SETTLED: Duration = Duration::from_secs(60);

/// Who decides for this node.
pub(crate) enum Meeting {
    /// It does.
    Alone { budget: Budget },
    /// The coordinator on node 0.
    Member { member: Member, stop_told: bool },
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

impl Meeting {
    /// Takes the run folder, and with several nodes finds the coordinator or serves it. Without a number of its own a
    /// node leaves the lock to the workers' rank 0.
    pub(crate) fn open(
        spec: &LaunchSpec,
        report: &dyn Fn(&str),
    ) -> Result<(Self, Option<RunLock>), LaunchError> {
        let nodes = &spec.nodes;
        let Some(rdzv) = nodes.rdzv.as_ref().filter(|_| nodes.nnodes > 1) else {
            let budget = Budget::new(spec.max_restarts);
            return Ok((Self::Alone { budget }, Some(RunLock::of_launcher(&spec.run_dir, 0)?)));
        };
        let listener = listener(rdzv, nodes.node_rank)?;
        let node_rank = if listener.is_some() { Some(0) } else { nodes.node_rank };
        let lock = node_rank.map(|rank| RunLock::of_launcher(&spec.run_dir, rank)).transpose()?;
        let token = token(&spec.run_dir)?;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            run_id: run_id(&spec.run_dir),
            args: digest(spec),
            nnodes: nodes.nnodes,
            node_rank,
            nproc: spec.nproc,
        };
        if let Some(listener) = listener {
            let rules = Rules {
                expected: hello.clone(),
                max_restarts: spec.max_restarts,
                lease: nodes.lease,
                join: nodes.join,
            };
            coordinator::serve(listener, token.clone(), rules, rdzv.host.clone())?;
            report(&format!("node 0 of {}: waiting for the others at {rdzv}", nodes.nnodes));
        }
        let member = Member::join(rdzv, &token, hello, nodes.lease, nodes.join)?;
        Ok((Self::Member { member, stop_told: false }, lock))
    }

    /// Waits for this node's place in the next generation.
    pub(crate) fn next(
        &mut self,
        spec: &LaunchSpec,
        generation: u32,
        signals: &StopSignals,
    ) -> Result<Next, LaunchError> {
        let Self::Member { member, stop_told } = self else {
            return Ok(Next::Start(alone(spec.nproc, generation)?));
        };
        loop {
            tell_stop(member, stop_told, signals);
            match member.news(TICK) {
                Some(News::Form(place)) => return Ok(Next::Start(place)),
                Some(News::Over { code: Some(code), .. }) => return Ok(Next::Exit(exit_of(code))),
                Some(News::Refused { detail }) => {
                    return Err(LaunchError::Meeting { detail, mendable: true });
                }
                // What its workers had is on the disk; the scheduler starts all nodes again.
                Some(News::Lost) => return Ok(Next::Exit(Exit::Stopped)),
                Some(News::Over { .. } | News::End { .. } | News::Stop { .. } | News::Others { .. })
                | None => {}
            }
        }
    }

    /// The place of this node in the generation that its living workers are called to, and how many restarts in a row that
    /// makes; `None` where none is left, and with several nodes, whose workers end together.
    pub(crate) fn regroup(&mut self, place: &Place, saved: u64) -> Result<Option<(Place, u32)>, LaunchError> {
        let Self::Alone { budget } = self else { return Ok(None) };
        let Ok(spent) = budget.restart(saved) else { return Ok(None) };
        Ok(Some((alone(place.world_size, place.generation + 1)?, spent)))
    }

    /// What the coordinator wants of the generation that runs.
    pub(crate) fn news(&mut self, signals: &StopSignals) -> Option<News> {
        let Self::Member { member, stop_told } = self else { return None };
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
    pub(crate) fn settle(&mut self, generation: u32, outcome: &Outcome) -> Settled {
        let &Outcome { local, cause, saved } = outcome;
        let member = match self {
            Self::Member { member, .. } => member,
            Self::Alone { budget } => {
                let (exit, spent) = match local.map_or_else(|| budget.restart(saved), Err) {
                    Ok(spent) => (None, Some(spent)),
                    Err(exit) => (Some(exit), None),
                };
                return Settled { exit, ours: cause.is_some(), spent };
            }
        };
        let code = local.unwrap_or(Exit::Unavailable).code();
        member.tell(&coordinator::FromNode::Ended { generation, code, saved });
        let start = Instant::now();
        while start.elapsed() < SETTLED {
            match member.news(TICK) {
                Some(News::Over { generation: over, cause: first, code }) if over == generation => {
                    let ours = first.is_some() && first == cause;
                    return Settled { exit: code.map(exit_of), ours, spent: None };
                }
                Some(News::Lost) => break,
                _ => {}
            }
        }
        Settled { exit: Some(Exit::Stopped), ours: cause.is_some(), spent: None }
    }
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

fn alone(nproc: usize, generation: u32) -> Result<Place, LaunchError> {
    Ok(Place {
        generation,
        node_rank: 0,
        nnodes: 1,
        first_rank: 0,
        world_size: nproc,
        master_addr: LOOPBACK.into(),
        master_port: free_port()?,
    })
}

/// A port on loopback that is free now. Another process may take it first; then rank 0 says so and the next
/// generation gets another.
fn free_port() -> Result<u16, LaunchError> {
    TcpListener::bind((LOOPBACK, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| LaunchError::System { action: "find a free port on 127.0.0.1", source })
}

/// The meeting place, where it is this node's: of number 0, or without numbers of the first that can listen there.
fn listener(rdzv: &Rdzv, node_rank: Option<usize>) -> Result<Option<TcpListener>, LaunchError> {
    if node_rank.is_some_and(|rank| rank > 0) {
        return Ok(None);
    }
    match TcpListener::bind((rdzv.host.as_str(), rdzv.port)) {
        Ok(listener) => Ok(Some(listener)),
        Err(_) if node_rank.is_none() => Ok(None),
        Err(source) => Err(LaunchError::Meeting {
            detail: format!(
                "node 0 cannot listen at {rdzv}: {source}; --rdzv must name this machine, by an address of its own \
                 and a port that is free"
            ),
            mendable: source.kind() != io::ErrorKind::AddrInUse,
        }),
    }
}

/// The run's token: the environment's, else the one in the run folder, which the first node makes.
fn token(run_dir: &Path) -> Result<Vec<u8>, LaunchError> {
    if let Some(token) = environment::read_filled(TOKEN) {
        return Ok(token.into_bytes());
    }
    let path = run_dir.join(TOKEN_FILE);
    let failed = |source| LaunchError::Write { path: path.clone(), source };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let mut bytes = [0u8; 32];
            getrandom::fill(&mut bytes).map_err(|error| failed(io::Error::other(error)))?;
            file.write_all(hex(&bytes).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // The node that makes it may be writing right now.
    for _ in 0..100 {
        let token = fs::read(&path).map_err(failed)?;
        if token.len() == 64 {
            return Ok(token);
        }
        thread::sleep(TICK);
    }
    Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is half written; remove it")))
}

fn digest(spec: &LaunchSpec) -> String {
    let mut digest = Sha256::new();
    for arg in &spec.args {
        digest.update(arg.as_encoded_bytes());
        digest.update([0]);
    }
    hex(&digest.finalize()[..6])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a launch would start on this node, as text, without starting it.
///
/// # Errors
/// [`LaunchError::System`] where this machine has no free port.
pub fn dry_run(spec: &LaunchSpec) -> Result<String, LaunchError> {
    let nodes = &spec.nodes;
    let mut text = format!("run folder: {}\nrestarts: {}\n", spec.run_dir.display(), spec.max_restarts);
    let mut place = alone(spec.nproc, 0)?;
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
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn all_nodes_find_one_token_that_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| token(dir.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(tokens.iter().all(|token| token == &tokens[0] && token.len() == 64));
        let mode = fs::metadata(dir.path().join(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
