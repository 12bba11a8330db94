//! Which sample stands where: a pure function of (seed, epoch, position), never of ranks or workers.
//!
//! A position counts samples over all epochs. The batch of a step is a range of positions; a last partial batch
//! flows into the next epoch. Ranks take contiguous slices of that range, so any world size sees the same global
//! batches, and resuming is arithmetic.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::rng::{Rng, Stream};

/// One place in the order: this sample, in this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleRef {
    /// The pass over the data set, from 0.
    pub epoch: u64,
    /// The sample's place in the index.
    pub index: usize,
}

/// The order of all epochs over `num_samples` samples.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    num_samples: usize,
    /// The permutations used last: a batch may lie over two epochs, and workers run ahead.
    cached: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl Order {
    /// The order named by `seed` over `num_samples` samples (up to 2^32).
    pub fn new(seed: u64, num_samples: usize) -> Self {
        Self { seed, num_samples, cached: Mutex::default() }
    }

    /// Samples of one epoch.
    pub fn num_samples(&self) -> usize {
        self.num_samples
    }

    /// The permutation of `epoch`: each sample exactly once.
    pub fn epoch(&self, epoch: u64) -> Arc<Vec<u32>> {
        // Holding the lock while shuffling lets the other workers wait instead of doing the same work.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, permutation)) = cached.iter().find(|(at, _)| *at == epoch) {
            return Arc::clone(permutation);
        }
        let mut permutation: Vec<u32> = (0..self.num_samples as u64).map(|index| index as u32).collect();
        Rng::new(self.seed, Stream::Order, &[epoch]).shuffle(&mut permutation);
        let permutation = Arc::new(permutation);
        cached.push((epoch, Arc::clone(&permutation)));
        if cached.len() > 2 {
            cached.remove(0);
        }
        permutation
    }

    /// The `count` samples from `position` on. Empty only over an empty index.
    pub fn slice(&self, position: u64, count: usize) -> Vec<SampleRef> {
        let mut samples = Vec::with_capacity(count);
        if self.num_samples == 0 {
            return samples;
        }
        let num_samples = self.num_samples as u64;
        while samples.len() < count {
            let here = position + samples.len() as u64;
            let (epoch, start) = (here / num_samples, (here % num_samples) as usize);
            let end = self.num_samples.min(start + count - samples.len());
            let permutation = self.epoch(epoch);
            samples.extend(
                permutation[start..end].iter().map(|&index| SampleRef { epoch, index: index as usize }),
            );
        }
        samples
    }
}

/// The part of a global batch that `rank` takes: contiguous, in rank order, sizes differing by at most one.
pub fn rank_slice(global_batch: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (share, rest) = (global_batch / world_size, global_batch % world_size);
    let start = rank * share + rank.min(rest);
    start..start + share + usize::from(rank < rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_epoch_holds_each_sample_once(seed: u64, num_samples in 1usize..200, epoch in 0u64..1000) {
            let order = Order::new(seed, num_samples);
            let mut seen: Vec<usize> =
                order.slice(epoch * num_samples as u64, num_samples).iter().map(|sample| sample.index).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..num_samples).collect::<Vec<_>>());
        }

        #[test]
        fn any_world_size_sees_the_same_global_batch(
            seed: u64, num_samples in 1usize..50, global_batch in 1usize..40, step in 0u64..1_000_000,
            world_size in 1usize..9,
        ) {
            let order = Order::new(seed, num_samples);
            let first = step * global_batch as u64;
            let whole = order.slice(first, global_batch);
            let mut joined = Vec::new();
            for rank in 0..world_size {
                let slice = rank_slice(global_batch, rank, world_size);
                // A fresh order per rank: nothing but the position is shared.
                joined.extend(Order::new(seed, num_samples).slice(first + slice.start as u64, slice.len()));
            }
            prop_assert_eq!(whole, joined);
        }

        #[test]
        fn slices_join_without_seams(seed: u64, num_samples in 1usize..30, start in 0u64..500, cut in 0usize..60) {
            let order = Order::new(seed, num_samples);
            let mut joined = order.slice(start, cut);
            joined.extend(order.slice(start + cut as u64, 60 - cut));
            prop_assert_eq!(order.slice(start, 60), joined);
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = Order::new(1, 100);
        assert_ne!(order.epoch(0), order.epoch(1));
        assert_ne!(order.epoch(0), Order::new(2, 100).epoch(0));
        assert!(Order::new(1, 0).slice(5, 3).is_empty());
    }
}
