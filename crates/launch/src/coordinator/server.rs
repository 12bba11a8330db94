//! The sockets around the coordinator's state. One thread decides, one a connection reads.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
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
/// How long the coordinator stays after the end, so that nodes hear of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// Without descriptors or memory every accept fails at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

type Senders = Arc<Mutex<BTreeMap<Conn, Sender>>>;

/// Serves a run's coordinator on `listener` until the run is over; returns at once.
pub(crate) fn serve(
    listener: TcpListener,
    token: Vec<u8>,
    rules: Rules,
    master: String,
) -> Result<(), LaunchError> {
    let senders = Senders::default();
    let (events, inbox) = mpsc::channel();
    let refused = |source| LaunchError::System { action: "start the coordinator's threads", source };
    let for_accept = (Arc::clone(&senders), events);
    let accept = move || accept_all(&listener, &token, &for_accept.0, &for_accept.1);
    thread::Builder::new().name("coordinator accept".into()).spawn(accept).map_err(refused)?;
    let beat = rules.lease / 5;
    let decide = move || {
        let start = Instant::now();
        let mut state = State::new(rules, Duration::ZERO);
        let mut over_since = None;
        let mut last_beat = Duration::ZERO;
        let mut meeting_place = MeetingPlace::on(master);
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
            if state.exit().is_some() {
                let since = *over_since.get_or_insert(now);
                if state.is_alone() || now.saturating_sub(since) > FAREWELL {
                    return;
                }
            }
        }
    };
    thread::Builder::new().name("coordinator".into()).spawn(decide).map_err(refused)?;
    Ok(())
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
            // 0 where none can be had: the workers refuse it and end with 78.
            let master_port = meeting_place.next_port().unwrap_or(0);
            let nnodes = nodes.len();
            for (conn, node_rank, first_rank) in nodes {
                let master_addr = meeting_place.host().to_owned();
                let place =
                    Place { generation, node_rank, nnodes, first_rank, world_size, master_addr, master_port };
                send(senders, conn, &FromCoordinator::Form(place));
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
