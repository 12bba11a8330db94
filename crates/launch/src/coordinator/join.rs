//! How a launcher comes to the coordinator: it tries until it is taken in or out of time.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::member::Member;
use super::message::{FromCoordinator, FromNode, Hello, exit_of};
use super::wire::{self, OpenError, Receiver, Sender};
use crate::addresses::first_that_will_do;
use crate::nodes::Rdzv;
use crate::stop::StopSignals;
use crate::{Exit, LaunchError};

const TRY_AGAIN: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(2);
/// A coordinator answers at once.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a wish to stop is looked for meanwhile.
const TICK: Duration = Duration::from_millis(20);

/// What a launcher needs to be taken in.
#[derive(Debug, Clone)]
pub(crate) struct Invitation {
    pub rdzv: Rdzv,
    pub token: Vec<u8>,
    pub hello: Hello,
    /// A node that is silent for so long is lost, and its number free for another.
    pub lease: Duration,
    /// So long is it tried.
    pub join: Duration,
}

/// How it went.
#[derive(Debug)]
pub(crate) enum Joined {
    In(Member),
    /// The run is over, or this launcher was asked for a stop.
    Out(Exit),
}

/// Who was found, in the end.
enum Found {
    /// The coordinator, which has taken this node in.
    In(Sender, Receiver),
    /// One of a run that is over.
    Over(Exit),
}

/// What one try came to.
enum Answer {
    Found(Found),
    /// Not now: another try may be taken, for as long as a lease may last.
    Later(String),
    Never(String),
    /// Nothing was decided.
    Nothing(io::Error),
}

impl Invitation {
    /// Tries until `join` has passed or `signals` ask for a stop, which loses nothing: this node has no workers yet.
    ///
    /// # Errors
    /// [`LaunchError::Meeting`] naming address, the resolver's answer and the last error, or what the coordinator says
    /// against this node.
    pub(crate) fn join(self, signals: &StopSignals) -> Result<Joined, LaunchError> {
        let (found, inbox) = mpsc::channel();
        let lease = self.lease;
        // A thread of its own, because names and addresses that do not answer hold it up for seconds.
        let search = move || drop(found.send(self.search()));
        thread::Builder::new().name("meeting".into()).spawn(search).map_err(|source| {
            LaunchError::System { action: "start a thread to meet the other nodes", source }
        })?;
        loop {
            if signals.received().is_some() {
                return Ok(Joined::Out(Exit::Stopped));
            }
            match inbox.recv_timeout(TICK) {
                Ok(Ok(Found::In(sender, receiver))) => {
                    return Member::new(sender, receiver, lease).map(Joined::In);
                }
                Ok(Ok(Found::Over(exit))) => return Ok(Joined::Out(exit)),
                Ok(Err(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Joined::Out(Exit::Unavailable)),
            }
        }
    }

    fn search(&self) -> Result<Found, LaunchError> {
        let start = Instant::now();
        let refused = |detail| Err(LaunchError::Meeting { detail, mendable: true });
        let mut put_off: Option<Instant> = None;
        loop {
            match self.attempt() {
                Answer::Found(found) => return Ok(found),
                Answer::Never(detail) => return refused(detail),
                Answer::Later(detail) => {
                    let since = *put_off.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.lease * 3 / 2 {
                        return refused(detail);
                    }
                }
                Answer::Nothing(error) if start.elapsed() >= self.join => {
                    return Err(self.unmet(start.elapsed(), &error));
                }
                Answer::Nothing(_) => {}
            }
            thread::sleep(TRY_AGAIN);
        }
    }

    fn attempt(&self) -> Answer {
        let opened =
            connect(&self.rdzv).map_err(Into::into).and_then(|stream| wire::open(stream, &self.token));
        let (mut sender, mut receiver) = match opened {
            Ok(halves) => halves,
            Err(OpenError::Io(error)) => return Answer::Nothing(error),
            Err(error @ OpenError::Refused(_)) => {
                return Answer::Never(format!(
                    "no meeting at {}: {error}; give all nodes one run folder on a shared disk, or one \
                     BLIP2_RDZV_TOKEN",
                    self.rdzv
                ));
            }
        };
        match self.introduce(&mut sender, &mut receiver) {
            Ok(FromCoordinator::Welcome) => Answer::Found(Found::In(sender, receiver)),
            Ok(FromCoordinator::Over { code: Some(code), .. }) => Answer::Found(Found::Over(exit_of(code))),
            Ok(FromCoordinator::Refused { detail, later: true }) => Answer::Later(detail),
            Ok(FromCoordinator::Refused { detail, later: false }) => Answer::Never(detail),
            Ok(_) => Answer::Nothing(io::Error::other("the coordinator does not answer what was asked")),
            Err(error) => Answer::Nothing(error),
        }
    }

    fn introduce(&self, sender: &mut Sender, receiver: &mut Receiver) -> io::Result<FromCoordinator> {
        sender.send(&FromNode::Hello(self.hello.clone()))?;
        receiver.wait_at_most(Some(ANSWER))?;
        loop {
            match receiver.next()? {
                FromCoordinator::Beat => {}
                answer => {
                    receiver.wait_at_most(None)?;
                    return Ok(answer);
                }
            }
        }
    }

    fn unmet(&self, waited: Duration, error: &io::Error) -> LaunchError {
        let rdzv = &self.rdzv;
        let answer = match (rdzv.host.as_str(), rdzv.port).to_socket_addrs() {
            Ok(addresses) => {
                let addresses: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
                format!("the name gives {}", addresses.join(", "))
            }
            Err(error) => format!("the name gives no address ({error})"),
        };
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused => "is the launcher of node 0 running, with the same --rdzv?",
            _ => "check --rdzv, the network interface and firewalls",
        };
        let seconds = waited.as_secs_f64();
        LaunchError::Meeting {
            detail: format!("no meeting at {rdzv} after {seconds:.0} s: {error}; {answer}; {hint}"),
            mendable: false,
        }
    }
}

fn connect(rdzv: &Rdzv) -> io::Result<TcpStream> {
    first_that_will_do(&rdzv.host, rdzv.port, |address| TcpStream::connect_timeout(&address, CONNECT))
}
