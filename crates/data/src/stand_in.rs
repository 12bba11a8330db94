//! What stands in for a bad sample: the same at any world size, in any epoch and after any restart.
//!
//! Stand-ins are drawn from the sample's own shard first, then from those behind it in its set: the samples of a bad
//! stretch do not all get the same one, and of remote shards one more is fetched, not many.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::SkipReason;
use crate::index::Index;
use crate::rng::{Rng, Stream};

/// Draws for one bad sample; if none of them is good, no good one is left worth the name.
const MAX_DRAWS: u64 = 10_000;
/// Draws from one shard before the next one's turn comes.
const DRAWS_OF_A_SHARD: u64 = 16;
/// Bad samples that are remembered: some 30 MB.
const MAX_KNOWN: usize = 1 << 20;

/// Draws what may stand in for `sample`, whose set has the samples `set`: pure functions of `sample` and the shards'
/// sizes. Some are drawn twice, and any may be bad too.
pub(crate) fn stand_ins(index: &Index, set: Range<usize>, sample: usize) -> impl Iterator<Item = usize> + '_ {
    let shard_of = |sample: usize| u64::from(index.entry(sample).shard);
    let (first, last, own) = (shard_of(set.start), shard_of(set.end - 1), shard_of(sample));
    (0..MAX_DRAWS).filter_map(move |draw| {
        let shard = first + (own - first + draw / DRAWS_OF_A_SHARD) % (last - first + 1);
        let samples = index.samples_of(shard as u32);
        let drawn = Rng::new(0, Stream::StandIn, &[sample as u64, draw]).below(samples.len() as u64);
        (!samples.is_empty()).then(|| samples.start + drawn as usize)
    })
}

/// The bad samples that this process has met, so that each is read and decoded once. Knowing saves time and changes
/// nothing else.
#[derive(Debug, Default)]
pub(crate) struct KnownBad(Mutex<HashMap<usize, SkipReason>>);

impl KnownBad {
    /// What is wrong with `sample`, if that is known.
    pub(crate) fn reason(&self, sample: usize) -> Option<SkipReason> {
        self.lock().get(&sample).copied()
    }

    /// Remembers it, while there is room.
    pub(crate) fn add(&self, sample: usize, reason: SkipReason) {
        let mut known = self.lock();
        if known.len() < MAX_KNOWN {
            known.insert(sample, reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, SkipReason>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
