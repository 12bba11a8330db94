//! Which sample stands where: a pure function of (seed, epoch, position), never of ranks or workers.
//!
//! A position counts samples over all epochs. The batch of a step is a range of positions; a last partial batch
//! flows into the next epoch. Ranks take contiguous slices of that range, so any world size sees the same global
//! batches, and resuming is arithmetic.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::error::DataError;
use crate::mixture::{Drawn, Mixture, MixtureSet, Unit};
use crate::recent::Recent;
use crate::rng::{Rng, Stream};

/// One place in the order: this sample, in this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleRef {
    /// The pass over its set, from 0.
    pub epoch: u64,
    /// The sample's place in the index.
    pub index: usize,
}

/// The order of all epochs over an index.
#[derive(Debug)]
pub struct Order {
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    Whole(Whole),
    Blocks(Blocks),
    Mixture(Mixture),
}

/// Each epoch one permutation of everything.
#[derive(Debug)]
struct Whole {
    seed: u64,
    num_samples: usize,
    /// A batch may lie over two epochs, and workers run ahead.
    permutations: Recent<u64, Vec<u32>>,
}

impl Order {
    /// A full shuffle of `num_samples` samples (up to 2^32) in each epoch: for data that is near, because any sample
    /// may be next.
    pub fn new(seed: u64, num_samples: usize) -> Self {
        Self { layout: Layout::Whole(Whole { seed, num_samples, permutations: Recent::new(2) }) }
    }

    /// For shards that are far: each epoch permutes the shards, takes `shards_per_block` of them at a time, and
    /// permutes the samples of such a block. So only a block's shards are read at one time, and a shard is read
    /// once an epoch.
    ///
    /// `shard_sizes` are the samples of each shard ([`crate::Index::shard_sizes`]).
    pub fn in_blocks(seed: u64, shard_sizes: &[usize], shards_per_block: usize) -> Self {
        Self { layout: Layout::Blocks(Blocks::new(seed, 0, 0, shard_sizes, shards_per_block)) }
    }

    /// Several sets at once, each in blocks; see [`MixtureSet`] and [`Unit`].
    ///
    /// Sets are given in the order in which [`crate::Index::open_sets`] read them. Errors: shares that are no
    /// ratios, or a set that cannot fill one unit within its epochs.
    pub fn mixture(
        seed: u64,
        sets: &[MixtureSet],
        unit: Unit,
        shards_per_block: usize,
    ) -> Result<Self, DataError> {
        Ok(Self { layout: Layout::Mixture(Mixture::new(seed, sets, unit, shards_per_block)?) })
    }

    /// Samples of one epoch, over all sets.
    pub fn num_samples(&self) -> usize {
        match &self.layout {
            Layout::Whole(whole) => whole.num_samples,
            Layout::Blocks(blocks) => blocks.num_samples(),
            Layout::Mixture(mixture) => mixture.num_samples(),
        }
    }

    /// Positions that there are, when every set of a mixture has a last epoch; otherwise there is no end.
    pub fn end(&self) -> Option<u64> {
        match &self.layout {
            Layout::Mixture(mixture) => mixture.end(),
            Layout::Whole(_) | Layout::Blocks(_) => None,
        }
    }

    /// The `count` samples from `position` on; fewer only at [`Order::end`] and over an empty index.
    pub fn slice(&self, position: u64, count: usize) -> Vec<SampleRef> {
        match &self.layout {
            Layout::Whole(whole) => whole.slice(position, count),
            Layout::Blocks(blocks) => blocks.slice(position, count),
            Layout::Mixture(mixture) => mixture.slice(position, count),
        }
    }

    /// What lies before `position`, of each set: the accounting of a mixture.
    pub fn drawn(&self, position: u64) -> Vec<Drawn> {
        match &self.layout {
            Layout::Mixture(mixture) => mixture.drawn(position),
            Layout::Whole(_) | Layout::Blocks(_) => vec![Drawn::new(position, self.num_samples())],
        }
    }

    /// The samples among which a replacement for `sample` is looked for: those of its set.
    pub fn neighbours(&self, sample: usize) -> Range<usize> {
        match &self.layout {
            Layout::Mixture(mixture) => mixture.set_of(sample),
            Layout::Whole(_) | Layout::Blocks(_) => 0..self.num_samples(),
        }
    }

    /// Shards that are read from `position` on, block by block, at least `count` if there are so many in this epoch
    /// and the next. Empty for a full shuffle, which needs all of them at any time.
    pub fn shards_from(&self, position: u64, count: usize) -> Vec<u32> {
        match &self.layout {
            Layout::Whole(_) => Vec::new(),
            Layout::Blocks(blocks) => blocks.shards_from(position, count),
            Layout::Mixture(mixture) => mixture.shards_from(position, count),
        }
    }

    /// Mean distance in the index between neighbours of the first epoch, over that of a full shuffle (`n / 3`):
    /// 1 is as good, 0 is no shuffle at all. Looks at a million samples at most.
    pub fn shuffle_quality(&self) -> f64 {
        let num_samples = self.num_samples();
        let order = self.slice(0, num_samples.min(1 << 20));
        if order.len() < 2 {
            return 1.0;
        }
        let distances = order.windows(2).map(|pair| pair[0].index.abs_diff(pair[1].index) as f64);
        // Of two different places in 0..n drawn at random the mean distance is (n + 1) / 3.
        distances.sum::<f64>() / (order.len() - 1) as f64 / ((num_samples + 1) as f64 / 3.0)
    }
}

impl Whole {
    fn slice(&self, position: u64, count: usize) -> Vec<SampleRef> {
        let mut samples = Vec::with_capacity(count);
        if self.num_samples == 0 {
            return samples;
        }
        let num_samples = self.num_samples as u64;
        while samples.len() < count {
            let here = position + samples.len() as u64;
            let (epoch, start) = (here / num_samples, (here % num_samples) as usize);
            let end = self.num_samples.min(start + count - samples.len());
            let permutation = self.permutations.get(epoch, || {
                let mut permutation: Vec<u32> = (0..num_samples).map(|index| index as u32).collect();
                Rng::new(self.seed, Stream::Order, &[epoch]).shuffle(&mut permutation);
                permutation
            });
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
    use crate::mixture::Share;

    /// Each kind of order over `sizes`, without an end.
    fn orders(seed: u64, sizes: &[usize]) -> Vec<Order> {
        let cut = sizes.len() / 2;
        let set = |sizes: &[usize], share| MixtureSet { shard_sizes: sizes.to_vec(), share, epochs: None };
        let sets = [set(&sizes[..cut], Share::Ratio(0.3)), set(&sizes[cut..], Share::Ratio(0.7))];
        let mut orders = vec![Order::new(seed, sizes.iter().sum()), Order::in_blocks(seed, sizes, 3)];
        for unit in [Unit::Sample, Unit::Batch(8)] {
            orders.extend(Order::mixture(seed, &sets, unit, 2));
        }
        orders
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1usize..30, 2..12)
    }

    proptest! {
        #[test]
        fn each_epoch_holds_each_sample_once(seed: u64, sizes in sizes(), epoch in 0u64..1000) {
            for order in orders(seed, &sizes).into_iter().take(2) {
                let num_samples = order.num_samples();
                let epoch_of = order.slice(epoch * num_samples as u64, num_samples);
                prop_assert!(epoch_of.iter().all(|sample| sample.epoch == epoch));
                let mut seen: Vec<usize> = epoch_of.iter().map(|sample| sample.index).collect();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..num_samples).collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_world_size_sees_the_same_global_batch(
            seed: u64, sizes in sizes(), global_batch in 1usize..40, step in 0u64..100_000, world_size in 1usize..9,
        ) {
            let first = step * global_batch as u64;
            for (kind, order) in orders(seed, &sizes).into_iter().enumerate() {
                let whole = order.slice(first, global_batch);
                let mut joined = Vec::new();
                for rank in 0..world_size {
                    let slice = rank_slice(global_batch, rank, world_size);
                    // A fresh order per rank: nothing but the position is shared.
                    joined.extend(orders(seed, &sizes)[kind].slice(first + slice.start as u64, slice.len()));
                }
                prop_assert_eq!(whole, joined);
            }
        }

        #[test]
        fn slices_join_without_seams(seed: u64, sizes in sizes(), start in 0u64..5000, cut in 0usize..60) {
            for order in orders(seed, &sizes) {
                let mut joined = order.slice(start, cut);
                joined.extend(order.slice(start + cut as u64, 60 - cut));
                prop_assert_eq!(order.slice(start, 60), joined);
            }
        }

        #[test]
        fn what_is_drawn_is_counted(seed: u64, sizes in sizes(), position in 0usize..400) {
            for order in orders(seed, &sizes) {
                let mut counts: Vec<(usize, u64)> = Vec::new();
                for sample in order.slice(0, position) {
                    let set = order.neighbours(sample.index).start;
                    match counts.iter_mut().find(|(at, _)| *at == set) {
                        Some((_, count)) => *count += 1,
                        None => counts.push((set, 1)),
                    }
                }
                counts.sort_unstable();
                let drawn: Vec<u64> =
                    order.drawn(position as u64).iter().map(|drawn| drawn.samples).filter(|count| *count > 0).collect();
                prop_assert_eq!(drawn, counts.iter().map(|(_, count)| *count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        for (one, other) in orders(1, &[40, 60, 30]).into_iter().zip(orders(2, &[40, 60, 30])) {
            assert_ne!(one.slice(0, 130), one.slice(130, 130));
            assert_ne!(one.slice(0, 130), other.slice(0, 130));
        }
        assert!(Order::new(1, 0).slice(5, 3).is_empty());
        assert!(Order::in_blocks(1, &[0, 0], 2).slice(5, 3).is_empty());
    }

    #[test]
    fn the_order_of_a_seed_never_changes() {
        // A changed number here changes every run and breaks every resume.
        let first = |order: Order| order.slice(1000, 4).iter().map(|at| at.index).collect::<Vec<_>>();
        assert_eq!(first(Order::new(7, 100)), [86, 57, 92, 3]);
        assert_eq!(first(Order::in_blocks(7, &[10; 10], 4)), [18, 84, 29, 23]);
    }

    #[test]
    fn blocks_of_16_of_100_shards_are_nearly_a_full_shuffle() {
        let quality = |shards| Order::in_blocks(3, &[1000; 100], shards).shuffle_quality();
        assert!((0.995..1.005).contains(&Order::new(3, 100_000).shuffle_quality()));
        let qualities = [1, 4, 16, 100].map(quality);
        println!(
            "adjacent-pair distance over a full shuffle's, blocks of 1, 4, 16, 100 of 100 shards: {qualities:.3?}"
        );
        assert!(qualities[0] < 0.02 && qualities[1] > 0.6 && qualities[2] > 0.88 && qualities[3] > 0.99);
    }
}
