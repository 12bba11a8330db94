//! Remote shards fetched before they are needed.

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};

use crate::error::DataError;
use crate::index::Index;
use crate::order::Order;

/// Downloads at once.
const THREADS: usize = 4;

/// Asks for the shards that the order comes to next.
#[derive(Debug)]
pub(crate) struct Prefetch {
    order: Arc<Order>,
    shards: usize,
    wanted: Option<Sender<u32>>,
    /// Of the shards ahead, those that were asked for.
    asked: Vec<u32>,
}

impl Prefetch {
    /// Starts threads that keep `shards` shards ahead; none where all shards are local.
    pub(crate) fn start(index: &Arc<Index>, order: &Arc<Order>, shards: usize) -> Result<Self, DataError> {
        let mut wanted = None;
        if shards > 0 && index.is_remote() {
            let (sender, receiver) = bounded::<u32>(shards);
            for number in 0..THREADS.min(shards) {
                let (index, receiver) = (Arc::clone(index), receiver.clone());
                let name = format!("prefetch-{number}");
                // Closing the channel ends the thread, after the download that it is in; nobody waits for that.
                let started = std::thread::Builder::new().name(name.clone()).spawn(move || {
                    for shard in receiver {
                        // The reader meets the same error, at a place where it can be reported.
                        let _ = index.open_shard(shard);
                    }
                });
                started.map_err(|error| DataError::Worker { worker: name, message: error.to_string() })?;
            }
            wanted = Some(sender);
        }
        Ok(Self { order: Arc::clone(order), shards, wanted, asked: Vec::new() })
    }

    /// The stream has come to `position`.
    pub(crate) fn reach(&mut self, position: u64) {
        let Some(wanted) = &self.wanted else { return };
        let ahead = self.order.shards_from(position, self.shards);
        self.asked.retain(|shard| ahead.contains(shard));
        for shard in ahead {
            if self.asked.contains(&shard) {
                continue;
            }
            if wanted.try_send(shard).is_err() {
                return; // the threads are behind; asked again with the next batch
            }
            self.asked.push(shard);
        }
    }
}
