//! The order of one set of shards: shards permuted, taken in blocks, samples permuted inside a block.

use std::ops::Range;

use crate::order::SampleRef;
use crate::recent::Recent;
use crate::rng::{Rng, Stream};

/// See [`crate::Order::in_blocks`].
#[derive(Debug)]
pub(crate) struct Blocks {
    seed: u64,
    /// Number of the first shard and of the first sample in the index.
    first_shard: usize,
    first_sample: usize,
    /// Samples before each shard, and their sum.
    starts: Vec<usize>,
    shards_per_block: usize,
    epochs: Recent<u64, Epoch>,
    /// A batch may lie over two blocks, and workers run ahead.
    permutations: Recent<(u64, usize), Vec<u32>>,
}

/// One pass: the shards' order, and the samples up to the end of each block.
#[derive(Debug)]
struct Epoch {
    shards: Vec<u32>,
    ends: Vec<u64>,
}

impl Blocks {
    pub(crate) fn new(
        seed: u64,
        first_shard: usize,
        first_sample: usize,
        shard_sizes: &[usize],
        shards_per_block: usize,
    ) -> Self {
        let mut starts = vec![0];
        for size in shard_sizes {
            starts.push(starts[starts.len() - 1] + size);
        }
        Self {
            seed,
            first_shard,
            first_sample,
            starts,
            shards_per_block: shards_per_block.max(1),
            epochs: Recent::new(2),
            permutations: Recent::new(3),
        }
    }

    pub(crate) fn num_samples(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// The set's samples in the index.
    pub(crate) fn samples(&self) -> Range<usize> {
        self.first_sample..self.first_sample + self.num_samples()
    }

    pub(crate) fn slice(&self, position: u64, count: usize) -> Vec<SampleRef> {
        let mut samples = Vec::with_capacity(count);
        let num_samples = self.num_samples() as u64;
        while num_samples > 0 && samples.len() < count {
            let here = position + samples.len() as u64;
            let (number, offset) = (here / num_samples, here % num_samples);
            let epoch = self.epoch(number);
            let block = epoch.ends.partition_point(|&end| end <= offset);
            let start = (offset - block.checked_sub(1).map_or(0, |before| epoch.ends[before])) as usize;
            let permutation = self.permutation(number, block, &epoch);
            let end = permutation.len().min(start + count - samples.len());
            samples.extend(
                permutation[start..end]
                    .iter()
                    .map(|&sample| SampleRef { epoch: number, index: self.first_sample + sample as usize }),
            );
        }
        samples
    }

    /// See [`crate::Order::shards_from`].
    pub(crate) fn shards_from(&self, position: u64, count: usize) -> Vec<u32> {
        let num_samples = self.num_samples() as u64;
        let mut found = Vec::new();
        if num_samples == 0 {
            return found;
        }
        let (number, offset) = (position / num_samples, position % num_samples);
        let epoch = self.epoch(number);
        let block = epoch.ends.partition_point(|&end| end <= offset);
        let this = epoch.shards.iter().skip(block * self.shards_per_block).copied();
        let take = |left: usize| left.next_multiple_of(self.shards_per_block);
        found.extend(this.take(take(count)));
        if found.len() < count {
            let next = self.epoch(number + 1);
            found.extend(next.shards.iter().copied().take(take(count - found.len())));
        }
        found.iter().map(|shard| self.first_shard as u32 + shard).collect()
    }

    fn epoch(&self, number: u64) -> std::sync::Arc<Epoch> {
        self.epochs.get(number, || {
            let mut shards: Vec<u32> = (0..self.starts.len() as u32 - 1).collect();
            Rng::new(self.seed, Stream::Order, &[number]).shuffle(&mut shards);
            let mut end = 0;
            let ends = shards.chunks(self.shards_per_block).map(|block| {
                end += block.iter().map(|&shard| self.shard(shard).len() as u64).sum::<u64>();
                end
            });
            let ends = ends.collect();
            Epoch { shards, ends }
        })
    }

    /// Samples of a shard, inside the set.
    fn shard(&self, shard: u32) -> Range<usize> {
        self.starts[shard as usize]..self.starts[shard as usize + 1]
    }

    fn permutation(&self, number: u64, block: usize, epoch: &Epoch) -> std::sync::Arc<Vec<u32>> {
        self.permutations.get((number, block), || {
            let first = block * self.shards_per_block;
            let shards = epoch.shards.iter().skip(first).take(self.shards_per_block);
            let mut samples: Vec<u32> =
                shards.flat_map(|&shard| self.shard(shard)).map(|sample| sample as u32).collect();
            Rng::new(self.seed, Stream::Block, &[number, block as u64]).shuffle(&mut samples);
            samples
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_reads_its_own_shards_and_prefetch_names_them(
            seed: u64, sizes in prop::collection::vec(0usize..9, 1..20), per_block in 1usize..6, position in 0u64..500,
        ) {
            let blocks = Blocks::new(seed, 100, 1000, &sizes, per_block);
            prop_assume!(blocks.num_samples() > 0);
            let shard_of = |sample: usize| {
                100 + blocks.starts.partition_point(|&start| start <= sample - 1000) as u32 - 1
            };
            let ahead = blocks.shards_from(position, 1);
            prop_assert!(ahead.len() <= 2 * per_block);
            let next = blocks.slice(position, 1)[0].index;
            prop_assert!(ahead.contains(&shard_of(next)));
            // Over a whole epoch, all shards with samples are named by then.
            let count = blocks.num_samples();
            let used: BTreeSet<u32> = blocks.slice(position, count).iter().map(|at| shard_of(at.index)).collect();
            let all: BTreeSet<u32> = blocks.shards_from(position, 2 * sizes.len()).into_iter().collect();
            prop_assert!(used.is_subset(&all));
        }
    }
}
