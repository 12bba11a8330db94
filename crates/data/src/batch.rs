//! One rank's part of one global batch on the host, and the place to resume from once it has been used.

use crate::counters::Counters;
use crate::room::Room;

/// A place in the stream: how many samples, over all epochs and ranks, lie before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize, serde::Serialize)]
pub struct Cursor {
    /// Samples before this place.
    pub position: u64,
}

/// What one rank uses in one forward. `B` samples; every list has `B` items, in stream order.
#[derive(Debug, PartialEq, Default)]
pub struct Batch {
    /// `[B, 3, S, S]`, normalised; `None` when the caller has cached features.
    pub pixels: Option<Room>,
    /// S of `pixels`.
    pub image_size: usize,
    /// Drawn by the policy, then processed.
    pub texts: Vec<String>,
    /// `image_id` of each sample's `.json`, where it has one.
    pub image_ids: Vec<Option<String>>,
    /// Names of the samples.
    pub keys: Vec<String>,
    /// Places of the samples in the index; a replaced sample shows its replacement.
    pub samples: Vec<usize>,
    /// What the order asked for; differs from `samples` where a bad sample was replaced.
    pub drawn: Vec<usize>,
    /// Epoch of each sample.
    pub epochs: Vec<u64>,
    /// What was skipped while this batch was made.
    pub counters: Counters,
    /// The stream position *after* the batches of all ranks.
    pub cursor: Cursor,
}

impl Batch {
    /// B.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// True of a batch without samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}
