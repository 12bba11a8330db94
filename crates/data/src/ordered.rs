//! Work done ahead on threads, delivered in order.
//!
//! Item `n` is made by worker `n mod workers`, each worker has its own bounded channel, and the consumer reads the
//! channels in turn: the order needs no sorting, the memory has a bound, and which thread made an item is no
//! accident. Closing a channel is the stop signal; a panic travels through the channel as an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::error::DataError;

/// Between two signs of life.
const SECOND: Duration = Duration::from_secs(1);
/// How long the end of a stream waits for its threads, all together.
const GRACE: Duration = Duration::from_secs(2);

/// A source of items that threads make ahead.
#[derive(Debug)]
pub(crate) struct Ordered<T> {
    channels: Vec<Receiver<Result<Option<T>, DataError>>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    ended: bool,
}

impl<T: Send + 'static> Ordered<T> {
    /// Starts `workers` (at least one) threads called `name-N`, each holding up to `depth` finished items.
    ///
    /// `make(n)` makes item `n`; `None` says that there is no such item, nor any after it.
    pub(crate) fn start(
        name: &str,
        workers: usize,
        depth: usize,
        make: impl Fn(u64) -> Option<T> + Send + Sync + 'static,
    ) -> Result<Self, DataError> {
        let workers = workers.max(1);
        let make = Arc::new(make);
        let mut ordered = Self { channels: Vec::new(), threads: Vec::new(), next: 0, ended: false };
        for worker in 0..workers {
            let (sender, receiver) = bounded(depth.max(1));
            let make = Arc::clone(&make);
            let name = format!("{name}-{worker}");
            let thread = std::thread::Builder::new().name(name.clone());
            let thread = thread.spawn(move || {
                for number in (worker as u64..).step_by(workers) {
                    let item = catch_unwind(AssertUnwindSafe(|| make(number))).map_err(|panic| {
                        DataError::Worker { worker: thread_name(), message: message(&*panic) }
                    });
                    let last = !matches!(item, Ok(Some(_)));
                    if sender.send(item).is_err() || last {
                        return;
                    }
                }
            });
            let failed =
                |error: std::io::Error| DataError::Worker { worker: name, message: error.to_string() };
            ordered.threads.push(thread.map_err(failed)?);
            ordered.channels.push(receiver);
        }
        Ok(ordered)
    }
}

impl<T> Ordered<T> {
    /// Waits for the next item, and calls `alive` after each second in which the thread that makes it is `excused`.
    pub(crate) fn wait(&self, excused: &dyn Fn(ThreadId) -> bool, alive: &dyn Fn()) {
        let worker = self.next % self.channels.len();
        let (channel, thread) = (&self.channels[worker], self.threads[worker].thread().id());
        while channel.is_empty() && !self.ended {
            let mut one = crossbeam_channel::Select::new();
            one.recv(channel);
            match one.ready_timeout(SECOND) {
                Ok(_) => return,
                Err(_) if excused(thread) => alive(),
                Err(_) => {}
            }
        }
    }
}

impl<T> Iterator for Ordered<T> {
    type Item = Result<T, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let worker = self.next % self.channels.len();
        self.next += 1;
        let item = self.channels[worker].recv().unwrap_or_else(|_| {
            let message = "it closed its channel without a word".to_owned();
            Err(DataError::Worker { worker: worker.to_string(), message })
        });
        self.ended = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

/// Closing the channels is the stop signal; a worker sees it at its next send. One that waits for a server then may
/// wait longer than a run that is to stop has time: it is left behind, and ends when its server has answered.
impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.channels.clear();
        let until = Instant::now() + GRACE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join(); // a panic was already reported through the channel
            }
        }
    }
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn items_come_in_order_whatever_the_threads_do() {
        for workers in 1..5 {
            let slow_first = |number: u64| {
                std::thread::sleep(Duration::from_micros(300 * (7 - number % 7)));
                (number < 50).then_some(number)
            };
            let items: Vec<u64> =
                Ordered::start("test", workers, 2, slow_first).unwrap().map(|item| item.unwrap()).collect();
            assert_eq!(items, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_is_an_error_at_its_place_and_the_end() {
        let mut items = Ordered::start("test", 3, 2, |number| {
            assert!(number != 4, "planted at {number}");
            Some(number)
        })
        .unwrap();
        let good: Vec<u64> = items.by_ref().take(4).map(|item| item.unwrap()).collect();
        assert_eq!(good, [0, 1, 2, 3]);
        let error = items.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("test-1") && error.contains("planted at 4"), "{error}");
        assert!(items.next().is_none());
    }

    #[test]
    fn a_worker_that_waits_long_does_not_hold_up_the_end() {
        let items = Ordered::start("test", 1, 1, |number| {
            std::thread::sleep(Duration::from_secs(30));
            Some(number)
        })
        .unwrap();
        let started = Instant::now();
        drop(items);
        assert!(started.elapsed() < GRACE + Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[test]
    fn who_waits_says_so_each_second_in_which_the_one_it_waits_for_is_excused() {
        let mut items = Ordered::start("test", 2, 1, |number| {
            // The second thread makes its item at once; it is the first that is waited for.
            std::thread::sleep(Duration::from_millis(if number == 0 { 3500 } else { 0 }));
            (number < 2).then_some(number)
        })
        .unwrap();
        let first = items.threads[0].thread().id();
        let (asked, signs) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let excused = |thread| {
            assert_eq!(thread, first);
            asked.fetch_add(1, Ordering::SeqCst) != 1
        };
        let alive = || {
            signs.fetch_add(1, Ordering::SeqCst);
        };
        items.wait(&excused, &alive);
        let seen = (asked.load(Ordering::SeqCst), signs.load(Ordering::SeqCst));
        assert_eq!(seen, (3, 2), "of three seconds the second had no excuse");
        assert_eq!(items.by_ref().map(Result::unwrap).collect::<Vec<_>>(), [0, 1]);
        items.wait(&|_| true, &|| panic!("behind the end there is nothing to wait for"));
    }

    #[test]
    fn work_ahead_is_bounded_and_dropping_ends_the_threads() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        let mut items = Ordered::start("test", 2, 3, move |number| {
            counter.fetch_add(1, Ordering::SeqCst);
            Some(number)
        })
        .unwrap();
        items.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        // Per worker: three in the channel, one waiting to be sent; one was taken.
        assert!(made.load(Ordering::SeqCst) <= 2 * 4 + 1);
        drop(items);
        assert_eq!(Arc::strong_count(&made), 1, "a worker has not ended");
    }
}
