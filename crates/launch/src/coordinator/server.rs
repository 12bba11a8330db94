//! The sockets around the coordinator's state. One thread decides, one a connection reads.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::message::{FromCoordinator, Place};
use super::state::{Action, Conn, Event, Rules, State};
use super::wire::{self, Sender};
use crate::LaunchError;
use crate::reserved_port::MeetingPlace;

/// Connections that have not shown the token yet; more are hung up on.
const MAX_STRANGERS: usize = 32;
/// How long node 0 stays at most after the end, so that all nodes hear of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// Without descriptors or memory every accept fails at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

type Senders = Arc<Mutex<BTreeMap<Conn, Sender>>>;

/// A run's coordinator, which lives in threads of node 0's launcher and ends with it.
#[derive(Debug)]
pub(crate) struct Coordinator {
    events: mpsc::Sender<Event>,
    /// Hangs up once the run is over and every node has left.
    left: Receiver<Infallible>,
}

impl Coordinator {
    /// Ends the run where it is not over, and stays until every node has heard so and left, or is not worth waiting for.
    /// This node's own connection counts too, so it must have been closed.
    pub(crate) fn farewell(self) {
        let _ = self.events.send(Event::Leave);
        let _ = self.left.recv_timeout(FAREWELL);
    }
}

/// Serves a run's coordinator on `listener` until the run is over and every node has left; returns at once.
pub(crate) fn serve(
    listener: TcpListener,
    token: Vec<u8>,
    rules: Rules,
    mut meeting_place: MeetingPlace,
) -> Result<Coordinator, LaunchError> {
    let senders = Senders::default();
    let (events, inbox) = mpsc::channel();
    let refused = |source| LaunchError::System { action: "start the coordinator's threads", source };
    let for_accept = (Arc::clone(&senders), events.clone());
    let accept = move || accept_all(&listener, &token, &for_accept.0, &for_accept.1);
    thread::Builder::new().name("coordinator accept".into()).spawn(accept).map_err(refused)?;
    let beat = rules.lease / 5;
    let (stays, left) = mpsc::channel();
    let decide = move || {
        let _stays = stays;
        let start = Instant::now();
        let mut state = State::new(rules, Duration::ZERO);
        let mut last_beat = Duration::ZERO;
        loop {
            let event = match inbox.recv_timeout(beat / 2) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = start.elapsed();
            for action in state.on(event, now) {
                act(&senders, action, &mut meeting_place);
            }
            if now.saturating_sub(last_beat) >= beat {
                last_beat = now;
                beat_all(&senders);
            }
            if state.exit().is_some() && state.is_alone() {
                return;
            }
        }
    };
    thread::Builder::new().name("coordinator".into()).spawn(decide).map_err(refused)?;
    Ok(Coordinator { events, left })
}

fn accept_all(listener: &TcpListener, token: &[u8], senders: &Senders, events: &mpsc::Sender<Event>) {
    let strangers = Arc::new(AtomicUsize::new(0));
    for (conn, stream) in (1..).zip(listener.incoming()) {
        let Ok(stream) = stream else {
            thread::sleep(ACCEPT_AGAIN);
            continue;
        };
        if strangers.fetch_add(1, Ordering::Relaxed) >= MAX_STRANGERS {
            strangers.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (token, senders, events) = (token.to_vec(), Arc::clone(senders), events.clone());
        let known = Arc::clone(&strangers);
        let read = move || read_all(conn, stream, &token, &senders, &events, &known);
        if thread::Builder::new().name("coordinator read".into()).spawn(read).is_err() {
            strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn read_all(
    conn: Conn,
    stream: TcpStream,
    token: &[u8],
    senders: &Senders,
    events: &mpsc::Sender<Event>,
    strangers: &AtomicUsize,
) {
    let accepted = wire::accept(stream, token);
    strangers.fetch_sub(1, Ordering::Relaxed);
    let Ok((sender, mut receiver)) = accepted else { return };
    lock(senders).insert(conn, sender);
    while let Ok(message) = receiver.next() {
        if events.send(Event::Said(conn, message)).is_err() {
            break;
        }
    }
    lock(senders).remove(&conn);
    let _ = events.send(Event::Closed(conn));
}

fn act(senders: &Senders, action: Action, meeting_place: &mut MeetingPlace) {
    match action {
        Action::Send(conn, message) => send(senders, conn, &message),
        Action::Close(conn) => {
            // Its reader notices and tells.
            if let Some(sender) = lock(senders).get(&conn) {
                sender.close();
            }
        }
        Action::Form { generation, world_size, nodes } => {
            let master_port = meeting_place.next_port();
            let nnodes = nodes.len();
            for (conn, node_rank, first_rank) in nodes {
                let master_addr = meeting_place.host().to_owned();
                let message = match &master_port {
                    &Ok(master_port) => FromCoordinator::Form(Place {
                        generation,
                        node_rank,
                        nnodes,
                        first_rank,
                        world_size,
                        master_addr,
                        master_port,
                    }),
                    Err(error) => FromCoordinator::NoPort { detail: error.to_string() },
                };
                send(senders, conn, &message);
            }
        }
    }
}

fn send(senders: &Senders, conn: Conn, message: &FromCoordinator) {
    let mut senders = lock(senders);
    if let Some(sender) = senders.get_mut(&conn)
        && sender.send(message).is_err()
    {
        sender.close();
    }
}

fn beat_all(senders: &Senders) {
    let conns: Vec<Conn> = lock(senders).keys().copied().collect();
    conns.into_iter().for_each(|conn| send(senders, conn, &FromCoordinator::Beat));
}

fn lock(senders: &Senders) -> std::sync::MutexGuard<'_, BTreeMap<Conn, Sender>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::message::{FromNode, Hello};
    use super::*;
    use crate::Exit;

    const LEASE: Duration = Duration::from_secs(60);

    fn hello() -> Hello {
        let (version, run_id, args) = ("1".into(), "run".into(), "digest".into());
        Hello { version, run_id, args, nnodes: 2, node_rank: None, nproc: 1 }
    }

    /// A coordinator of two nodes whose ranks are to meet at `address`, and their connections, both taken in.
    fn two_nodes(address: Ipv4Addr) -> (Coordinator, [(Sender, wire::Receiver); 2]) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let rules = Rules { expected: hello(), max_restarts: 0, lease: LEASE, join: LEASE };
        let place = MeetingPlace::on("node0".into(), (address, 0).into());
        let coordinator = serve(listener, b"token".to_vec(), rules, place).unwrap();
        let nodes = [(); 2].map(|()| {
            let (mut sender, receiver) = wire::open(TcpStream::connect(here).unwrap(), b"token").unwrap();
            sender.send(&FromNode::Hello(hello())).unwrap();
            (sender, receiver)
        });
        (coordinator, nodes)
    }

    /// The next message that is worth something.
    fn news(receiver: &mut wire::Receiver) -> FromCoordinator {
        receiver.wait_at_most(Some(Duration::from_secs(20))).unwrap();
        loop {
            match receiver.next().unwrap() {
                FromCoordinator::Beat | FromCoordinator::Welcome => {}
                message => return message,
            }
        }
    }

    #[test]
    fn node_0_stays_until_the_last_node_has_left_but_not_for_ever() {
        let (coordinator, nodes) = two_nodes(Ipv4Addr::LOCALHOST);
        let [(first, _), (second, mut from_second)] = nodes.map(|(mut sender, mut receiver)| {
            assert!(matches!(news(&mut receiver), FromCoordinator::Form(_)));
            sender.send(&FromNode::Ended { generation: 0, code: Exit::Done.code(), saved: 0 }).unwrap();
            (sender, receiver)
        });
        first.close();
        assert!(matches!(news(&mut from_second), FromCoordinator::Over { code: Some(0), .. }));
        let left = |at_most| coordinator.left.recv_timeout(at_most).unwrap_err();
        assert_eq!(left(Duration::from_millis(100)), RecvTimeoutError::Timeout, "one is still there");
        second.close();
        assert_eq!(left(Duration::from_secs(20)), RecvTimeoutError::Disconnected);

        let (coordinator, _still_there) = two_nodes(Ipv4Addr::LOCALHOST);
        let start = Instant::now();
        coordinator.farewell();
        assert!(start.elapsed() >= FAREWELL, "{:?}", start.elapsed());
    }

    #[test]
    fn a_node_hears_that_node_0_leaves_a_run_that_is_not_over() {
        let (coordinator, nodes) = two_nodes(Ipv4Addr::LOCALHOST);
        let [(first, _first), (mut second, mut from_second)] = nodes.map(|(sender, mut receiver)| {
            assert!(matches!(news(&mut receiver), FromCoordinator::Form(_)));
            (sender, receiver)
        });
        first.close();
        let second_node = thread::spawn(move || {
            assert!(matches!(news(&mut from_second), FromCoordinator::End { generation: 0 }));
            second.send(&FromNode::Ended { generation: 0, code: 69, saved: 0 }).unwrap();
            assert!(matches!(news(&mut from_second), FromCoordinator::Over { code: Some(69), .. }));
        });
        coordinator.farewell();
        second_node.join().unwrap();
    }

    #[test]
    fn nodes_are_told_why_their_ranks_have_no_port() {
        // An address of another machine.
        let (_coordinator, nodes) = two_nodes(Ipv4Addr::new(203, 0, 113, 1));
        for (_sender, mut receiver) in nodes {
            let FromCoordinator::NoPort { detail } = news(&mut receiver) else { panic!("a port there") };
            assert!(detail.contains("assign requested address"), "{detail}");
        }
    }
}
