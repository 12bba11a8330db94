//! Saving beside training: the caller hands over a host copy and goes on; a thread does the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{CheckpointError, Snapshot, Store};

/// A save that reached the disk.
#[derive(Debug)]
pub struct Saved {
    /// Optimizer steps done.
    pub step: u64,
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// Time the disk took, digests included.
    pub elapsed: Duration,
}

/// Writes checkpoints in the background, at most one at a time, so that memory holds at most one extra copy. A failed
/// save is a value for the caller to report; it ends nothing.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    in_flight: Option<JoinHandle<Result<Saved, CheckpointError>>>,
    saved: Arc<AtomicU64>,
    skipped: u64,
}

impl Writer {
    /// A writer of the checkpoints in `store`.
    pub fn new(store: Store) -> Self {
        Self { store, in_flight: None, saved: Arc::default(), skipped: 0 }
    }

    /// The checkpoints it writes.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether a save would start now, so that the caller can spare itself the copy.
    pub fn is_idle(&self) -> bool {
        self.in_flight.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts writing `snapshot` and returns at once. Returns the outcome of the save before it, if the caller has not
    /// collected it. While that one is still being written, the new one is dropped and counted as skipped.
    pub fn submit(&mut self, snapshot: Snapshot, step: u64) -> Option<Result<Saved, CheckpointError>> {
        if !self.is_idle() {
            self.skipped += 1;
            return None;
        }
        let before = self.finish();
        let (store, saved) = (self.store.clone(), Arc::clone(&self.saved));
        let spawned = thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || save(&store, &snapshot, step, &saved))
            .map_err(CheckpointError::io("start a thread to write", self.store.dir()));
        match spawned {
            Ok(handle) => self.in_flight = Some(handle),
            Err(error) => return Some(Err(error)),
        }
        before
    }

    /// Waits for the save in flight and returns its outcome; `None` when nothing was in flight.
    pub fn finish(&mut self) -> Option<Result<Saved, CheckpointError>> {
        let handle = self.in_flight.take()?;
        Some(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Writes `snapshot` before it returns, after the save in flight: for the last checkpoint of a run. Returns the
    /// outcomes in order.
    pub fn save_now(&mut self, snapshot: &Snapshot, step: u64) -> Vec<Result<Saved, CheckpointError>> {
        let before = self.finish();
        before.into_iter().chain([save(&self.store, snapshot, step, &self.saved)]).collect()
    }

    /// The furthest step that this writer has brought to the disk so far, also by a save that nobody has collected; 0 for
    /// none.
    pub fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    /// Saves dropped because the one before them was still being written.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// The save in flight is worth waiting for: without it the run would lose the steps since the one before.
impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(handle) = self.in_flight.take() {
            let _ = handle.join();
        }
    }
}

fn save(store: &Store, snapshot: &Snapshot, step: u64, saved: &AtomicU64) -> Result<Saved, CheckpointError> {
    let start = Instant::now();
    let path = store.save(snapshot, step)?;
    saved.fetch_max(step, Ordering::Relaxed);
    Ok(Saved { step, path, elapsed: start.elapsed() })
}
