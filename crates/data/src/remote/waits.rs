//! Which threads wait for a server, so that nobody takes one of them for a thread that hangs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// The threads that wait, and until when a wait is one: a download that outlives its deadline hangs too.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    until: Mutex<HashMap<ThreadId, Instant>>,
}

/// A wait of the thread that made it; over when dropped.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    waits: &'a Waits,
}

impl Waits {
    /// This thread waits, for at most `patience`.
    pub(super) fn begin(&self, patience: Duration) -> Wait<'_> {
        let wait = Wait { waits: self };
        wait.renew(patience);
        wait
    }

    /// Whether `thread` waits for a server that may still answer.
    pub(crate) fn holds(&self, thread: ThreadId) -> bool {
        self.lock().get(&thread).is_some_and(|until| Instant::now() < *until)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ThreadId, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait<'_> {
    /// Another wait begins, with a deadline of its own.
    pub(super) fn renew(&self, patience: Duration) {
        self.waits.lock().insert(thread::current().id(), Instant::now() + patience);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waits.lock().remove(&thread::current().id());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_from_the_beginning_to_the_end_and_no_longer_than_its_patience() {
        let (waits, own) = (Waits::default(), thread::current().id());
        assert!(!waits.holds(own));
        let wait = waits.begin(Duration::from_secs(60));
        assert!(waits.holds(own));
        thread::scope(|scope| {
            scope.spawn(|| assert!(!waits.holds(thread::current().id()), "another thread does not"));
        });
        wait.renew(Duration::ZERO);
        assert!(!waits.holds(own), "its patience is over");
        wait.renew(Duration::from_secs(60));
        drop(wait);
        assert!(!waits.holds(own));
    }
}
