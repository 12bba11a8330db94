//! Where node 0 listens for the others.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::LaunchError;
use crate::nodes::Rdzv;
use crate::reserved_port::MeetingPlace;
use crate::stop::StopSignals;

/// So long may a cluster's names take to follow its machines.
const NAMES: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(20);

/// The meeting place, where it is this node's.
pub(crate) struct Listening {
    pub listener: TcpListener,
    /// The name or address of this machine that ranks are told, and their ports there.
    pub place: MeetingPlace,
}

/// Listens at the meeting place, where it is this node's: of number 0, or without numbers of the first that can listen there.
/// A name that gives no address, or that of another machine, may do so only for a while. `None` as well where a stop is asked
/// for.
///
/// # Errors
/// [`LaunchError::Meeting`] where number 0 cannot listen there.
pub(crate) fn listen(
    rdzv: &Rdzv,
    node_rank: Option<usize>,
    join: Duration,
    signals: &StopSignals,
    report: &dyn Fn(&str),
) -> Result<Option<Listening>, LaunchError> {
    if node_rank.is_some_and(|rank| rank > 0) {
        return Ok(None);
    }
    let (start, mut told) = (Instant::now(), false);
    while signals.received().is_none() {
        let error = match try_once(rdzv) {
            Ok(listening) => {
                warn_of_loopback(rdzv, &listening, report);
                return Ok(Some(listening));
            }
            Err(_) if node_rank.is_none() => return Ok(None),
            Err(error) => error,
        };
        if !error.passes() || start.elapsed() >= join.min(NAMES) {
            return Err(error.into_meeting(rdzv));
        }
        if !std::mem::replace(&mut told, true) {
            report(&format!("node 0 cannot listen at {rdzv} yet: {}; trying again", error.source()));
        }
        let pause = Instant::now();
        while pause.elapsed() < TRY_AGAIN && signals.received().is_none() {
            thread::sleep(TICK);
        }
    }
    Ok(None)
}

/// Why this machine does not listen there.
enum Unheard {
    NoAddress(io::Error),
    NotBound(io::Error),
}

impl Unheard {
    /// Names of a cluster come and change a little later than its machines.
    fn passes(&self) -> bool {
        match self {
            Self::NoAddress(_) => true,
            Self::NotBound(source) => source.kind() == io::ErrorKind::AddrNotAvailable,
        }
    }

    fn source(&self) -> &io::Error {
        let (Self::NoAddress(source) | Self::NotBound(source)) = self;
        source
    }

    fn into_meeting(self, rdzv: &Rdzv) -> LaunchError {
        let mendable = match &self {
            Self::NoAddress(_) => false,
            Self::NotBound(source) => source.kind() != io::ErrorKind::AddrInUse,
        };
        LaunchError::Meeting {
            detail: format!(
                "node 0 cannot listen at {rdzv}: {}; --rdzv must name this machine, by an address of its own and a port \
                 that is free",
                self.source()
            ),
            mendable,
        }
    }
}

fn try_once(rdzv: &Rdzv) -> Result<Listening, Unheard> {
    let found = (rdzv.host.as_str(), rdzv.port).to_socket_addrs().map_err(Unheard::NoAddress)?;
    let (addresses, turned) = outside_first(found.collect());
    let listener = TcpListener::bind(&addresses[..]).map_err(Unheard::NotBound)?;
    let own = listener.local_addr().map_err(Unheard::NotBound)?;
    let master = if turned { own.ip().to_string() } else { rdzv.host.clone() };
    Ok(Listening { listener, place: MeetingPlace::on(master, own) })
}

/// Addresses that other machines may reach before those that none does, and whether that changed the first: Debian gives a
/// machine's own name 127.0.1.1, and who listens there waits in vain.
fn outside_first(mut addresses: Vec<SocketAddr>) -> (Vec<SocketAddr>, bool) {
    let first = addresses.first().copied();
    addresses.sort_by_key(|address| address.ip().is_loopback());
    let turned = addresses.first().copied() != first;
    (addresses, turned)
}

fn warn_of_loopback(rdzv: &Rdzv, listening: &Listening, report: &dyn Fn(&str)) {
    if let Ok(address) = listening.listener.local_addr()
        && address.ip().is_loopback()
    {
        report(&format!(
            "node 0 listens on {}, all that {} means here, and no other machine reaches it; for several machines \
             give --rdzv an address that they reach",
            address.ip(),
            rdzv.host
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReservedPort;

    fn sorted(addresses: &[&str]) -> (Vec<String>, bool) {
        let (sorted, turned) = outside_first(addresses.iter().map(|text| text.parse().unwrap()).collect());
        (sorted.iter().map(SocketAddr::to_string).collect(), turned)
    }

    #[test]
    fn a_loopback_address_comes_last_and_other_orders_stay() {
        let (debian, turned) = sorted(&["127.0.1.1:1", "10.0.0.7:1", "[::1]:1", "10.0.0.8:1"]);
        assert_eq!(
            (debian, turned),
            (["10.0.0.7:1", "10.0.0.8:1", "127.0.1.1:1", "[::1]:1"].map(String::from).into(), true)
        );
        assert_eq!(sorted(&["10.0.0.8:1", "127.0.0.1:1", "10.0.0.7:1"]).0[..2], ["10.0.0.8:1", "10.0.0.7:1"]);
        assert!(!sorted(&["10.0.0.8:1", "127.0.0.1:1"]).1 && !sorted(&["127.0.0.1:1"]).1);
    }

    #[test]
    fn who_listens_where_no_other_machine_comes_is_told() {
        let port = ReservedPort::on("127.0.0.1").unwrap();
        let rdzv = Rdzv { host: "127.0.0.1".into(), port: port.number() };
        let lines = std::cell::RefCell::new(Vec::new());
        let report = |line: &str| lines.borrow_mut().push(line.to_owned());
        let signals = StopSignals::install().unwrap();
        let here = listen(&rdzv, Some(0), Duration::ZERO, &signals, &report).unwrap().unwrap();
        assert_eq!(here.place.host(), "127.0.0.1");
        let lines = lines.into_inner();
        assert!(lines.len() == 1 && lines[0].contains("no other machine reaches it"), "{lines:?}");
    }

    #[test]
    fn a_name_without_an_address_is_no_mistake_and_an_address_of_another_machine_is_one() {
        let signals = StopSignals::install().unwrap();
        let lines = std::cell::RefCell::new(Vec::new());
        let report = |line: &str| lines.borrow_mut().push(line.to_owned());
        for (host, exit) in
            [("no-such-host.invalid", crate::Exit::Unavailable), ("203.0.113.1", crate::Exit::Config)]
        {
            let rdzv = Rdzv { host: host.into(), port: 29400 };
            let start = Instant::now();
            let Err(error) = listen(&rdzv, Some(0), Duration::from_millis(600), &signals, &report) else {
                panic!("{host} is not here");
            };
            assert_eq!(error.exit(), exit, "{error}");
            assert!(start.elapsed() >= Duration::from_millis(600), "it is tried again");
        }
        assert!(lines.into_inner().iter().all(|line| line.ends_with("; trying again")));
    }
}
