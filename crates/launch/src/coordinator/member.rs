//! A launcher's side of the coordinator, once it is taken in: beats, says what happened, hears what to do.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::message::{FromCoordinator, FromNode, Place};
use super::wire::{Receiver as FromWire, Sender};
use crate::LaunchError;
use crate::standing::Standing;

/// What a launcher hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    Form(Place),
    /// Node 0 has no port where the ranks could meet.
    NoPort {
        detail: String,
    },
    /// End the workers of this generation.
    End {
        generation: u32,
    },
    /// Ask the workers for a stop.
    Stop {
        signal: i32,
    },
    /// How far the other nodes of the generation have come; `None` where none of them is to be waited for, as far as is known.
    Others {
        generation: u32,
        standing: Option<Standing>,
    },
    /// The generation is over, or with a code the whole run; `cause` is the first failing rank.
    Over {
        generation: u32,
        cause: Option<usize>,
        code: Option<u8>,
    },
    /// It has not been heard of for half a lease, or hung up.
    Lost,
}

/// A launcher's connection to the coordinator.
#[derive(Debug)]
pub(crate) struct Member {
    sender: Arc<Mutex<Sender>>,
    inbox: Receiver<FromCoordinator>,
    heard: Instant,
    /// When it last said how far its workers have come.
    stood: Instant,
    lease: Duration,
    lost: bool,
}

impl Member {
    /// Of a connection to a coordinator that has taken this node in.
    pub(crate) fn new(sender: Sender, mut receiver: FromWire, lease: Duration) -> Result<Self, LaunchError> {
        let (letters, inbox) = mpsc::channel();
        let sender = Arc::new(Mutex::new(sender));
        let refused = |source| LaunchError::System { action: "start the threads of a node", source };
        let read = move || {
            while let Ok(message) = receiver.next() {
                if letters.send(message).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("coordinator news".into()).spawn(read).map_err(refused)?;
        let beating = Arc::downgrade(&sender);
        let beat = move || {
            while let Some(sender) = beating.upgrade() {
                if lock(&sender).send(&FromNode::Beat).is_err() {
                    return;
                }
                drop(sender);
                thread::sleep(lease / 5);
            }
        };
        thread::Builder::new().name("coordinator beat".into()).spawn(beat).map_err(refused)?;
        let now = Instant::now();
        Ok(Self { sender, inbox, heard: now, stood: now, lease, lost: false })
    }

    /// The next news within `timeout`; [`News::Lost`] again and again once it is.
    pub(crate) fn news(&mut self, timeout: Duration) -> Option<News> {
        let start = Instant::now();
        while !self.lost {
            match self.inbox.recv_timeout(timeout.saturating_sub(start.elapsed())) {
                Ok(message) => {
                    self.heard = Instant::now();
                    if let Some(news) = news(message) {
                        return Some(news);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => self.lost = true,
                Err(RecvTimeoutError::Timeout) if self.heard.elapsed() > self.lease / 2 => self.lost = true,
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
        thread::sleep(timeout.saturating_sub(start.elapsed()));
        Some(News::Lost)
    }

    /// Tells how far the workers have come, now and then.
    pub(crate) fn stands(&mut self, generation: u32, standing: impl FnOnce() -> Option<Standing>) {
        if self.stood.elapsed() < self.lease / 5 {
            return;
        }
        self.stood = Instant::now();
        if let Some(standing) = standing() {
            self.tell(&FromNode::Stands { generation, standing });
        }
    }

    /// Tells the coordinator; one that is gone is noticed by [`Self::news`].
    pub(crate) fn tell(&self, message: &FromNode) {
        let _ = lock(&self.sender).send(message);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.sender).close();
    }
}

fn news(message: FromCoordinator) -> Option<News> {
    Some(match message {
        // The last two are answers to a first word, which was said before.
        FromCoordinator::Beat | FromCoordinator::Welcome | FromCoordinator::Refused { .. } => return None,
        FromCoordinator::Form(place) => News::Form(place),
        FromCoordinator::NoPort { detail } => News::NoPort { detail },
        FromCoordinator::End { generation } => News::End { generation },
        FromCoordinator::Stop { signal } => News::Stop { signal },
        FromCoordinator::Others { generation, standing } => News::Others { generation, standing },
        FromCoordinator::Over { generation, cause, code } => News::Over { generation, cause, code },
    })
}

fn lock(sender: &Mutex<Sender>) -> std::sync::MutexGuard<'_, Sender> {
    sender.lock().unwrap_or_else(PoisonError::into_inner)
}
