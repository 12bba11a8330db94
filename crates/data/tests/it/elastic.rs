//! D8 of the matrix: ranks come and go, the samples stay; and how long a start takes far into a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Global, Shard, global_batches, spec, write, write_shards};
use data::{Index, Loader, LoaderSpec, MixtureSet, Order, Share, Unit, write_index_files};
use proptest::prelude::*;

/// Shards of 5 to 13 samples, every seventh without a usable caption.
fn index(dir: &std::path::Path, shards: usize) -> Arc<Index> {
    let mut number = 0;
    for shard_number in 0..shards {
        let mut shard = Shard::new();
        for _ in 0..5 + shard_number * 3 % 9 {
            let text: &[u8] = if number % 7 == 3 { b" " } else { b"a text" };
            shard
                .member(&format!("{number:05}.png"), &crate::common::png(1))
                .member(&format!("{number:05}.txt"), text);
            number += 1;
        }
        write(dir, &format!("{shard_number:03}.tar"), &shard.bytes());
    }
    Arc::new(Index::open(&[dir.display().to_string()]).unwrap())
}

/// Two epochs' worth of batches: with 2 ranks up to `change`, with 3 up to `again`, with 1 to the end.
fn elastic(spec: &LoaderSpec, change: usize, again: usize, batches: usize) -> (Vec<Global>, u64) {
    let mut joined = Vec::new();
    let mut skips = 0;
    for (world_size, from, to) in [(2, 0, change), (3, change, again), (1, again, batches)] {
        let position = (from * spec.global_batch) as u64;
        let (part, skipped) = global_batches(spec, world_size, position, to - from);
        joined.extend(part);
        skips += skipped.values().sum::<u64>();
    }
    (joined, skips)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn d8_two_three_one_ranks_see_each_sample_once(
        seed: u64, cut in 0.0f64..1.0, other in 0.0f64..1.0, per_block in 1usize..6, workers in 1usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let index = index(dir.path(), 8);
        let order = Arc::new(Order::in_blocks(seed, &index.shard_sizes(0), per_block));
        // Two epochs come out even: a batch is half of the samples' number or a divisor of it.
        let global_batch = (3..=index.len()).find(|batch| (2 * index.len()).is_multiple_of(*batch)).unwrap();
        let spec = LoaderSpec { order, seed, global_batch, workers, ..spec(Arc::clone(&index)) };
        let batches = 2 * index.len() / global_batch;
        let (first, second) = ((cut * batches as f64) as usize, (other * batches as f64) as usize);
        let (joined, skips) = elastic(&spec, first.min(second), first.max(second), batches);
        let (alone, alone_skips) = global_batches(&spec, 1, 0, batches);
        prop_assert_eq!(&joined, &alone);
        prop_assert_eq!(skips, alone_skips.values().sum::<u64>());
        // What was asked for and shown: the index minus the skips, exactly once an epoch.
        let mut shown = BTreeMap::<(u64, usize), u32>::new();
        for &(drawn, shown_as, epoch) in joined.iter().flatten() {
            if drawn == shown_as {
                *shown.entry((epoch, drawn)).or_default() += 1;
            }
        }
        let good: Vec<(u64, usize)> = (0..2u64)
            .flat_map(|epoch| (0..index.len()).map(move |sample| (epoch, sample)))
            .filter(|&(_, sample)| index.read_captions(sample).is_ok())
            .collect();
        prop_assert!(shown.values().all(|count| *count == 1));
        prop_assert_eq!(shown.into_keys().collect::<Vec<_>>(), good.clone());
        prop_assert_eq!(skips as usize, 2 * index.len() - good.len());
    }
}

#[test]
fn d8_mixtures_too_and_bad_samples_are_replaced_from_their_set() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sizes: Vec<usize> =
        dirs.iter().zip([6, 3]).map(|(dir, shards)| index(dir.path(), shards).len()).collect();
    let patterns = dirs.each_ref().map(|dir| vec![dir.path().display().to_string()]);
    let index = Arc::new(Index::open_sets(&patterns, None).unwrap());
    let set = |number, share| MixtureSet { shard_sizes: index.shard_sizes(number), share, epochs: Some(3) };
    for unit in [Unit::Sample, Unit::Batch(6)] {
        let sets = [set(0, Share::Ratio(3.0)), set(1, Share::Ratio(1.0))];
        let order = Arc::new(Order::mixture(5, &sets, unit, 2).unwrap());
        let end = order.end().unwrap();
        let spec = LoaderSpec { order, global_batch: 6, ..spec(Arc::clone(&index)) };
        let batches = end as usize / 6;
        let (joined, _) = elastic(&spec, batches / 3, batches / 2, batches);
        assert_eq!(joined, global_batches(&spec, 1, 0, batches).0);
        let in_first = |sample: usize| sample < sizes[0];
        assert!(joined.iter().flatten().all(|row| in_first(row.0) == in_first(row.1)));
        // All ranks learn of the end at the same batch.
        for rank in 0..2 {
            let spec =
                LoaderSpec { rank, world_size: 2, start_position: (batches * 6) as u64, ..spec.clone() };
            let error = Loader::start(spec).unwrap().next_batch().unwrap_err();
            assert!(matches!(error, data::DataError::Exhausted { samples } if samples == end), "{error}");
        }
    }
}

/// The best of a few rounds: what the work takes when nothing else runs in between.
fn best<T>(rounds: usize, mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut best = None;
    for _ in 0..rounds {
        let started = Instant::now();
        let result = work();
        let spent = started.elapsed();
        if best.as_ref().is_none_or(|(least, _)| spent < *least) {
            best = Some((spent, result));
        }
    }
    best.unwrap()
}

#[test]
fn long_index_of_100_shards_of_1000_samples_and_a_start_at_a_million() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = [write_shards(dir.path(), 100, 1000)];
    let (scanned, index) = best(3, || Index::open(&pattern).unwrap());
    write_index_files(&pattern, false).unwrap();
    let (read, again) = best(3, || Index::open(&pattern).unwrap());
    assert_eq!((again.len(), again.digest()), (100_000, index.digest()));
    println!("100 shards x 1000 samples: header scan {scanned:.3?}, out of index files {read:.3?}");
    assert!(scanned <= Duration::from_secs(2), "{scanned:?}");
    let index = Arc::new(index);
    let start = |position| {
        best(5, || {
            let order = Arc::new(Order::in_blocks(3, &index.shard_sizes(0), 16));
            let spec =
                LoaderSpec { order, global_batch: 32, start_position: position, ..spec(Arc::clone(&index)) };
            Loader::start(spec).unwrap().next_batch().unwrap()
        })
        .0
    };
    let (fresh, far) = (start(0), start(1_000_000));
    println!("first batch at position 0 after {fresh:.3?}, at position 1 000 000 after {far:.3?}");
    assert!(far <= fresh + Duration::from_millis(100), "{fresh:?} {far:?}");
    // The same of an order over a hundred million samples.
    let sizes = vec![10_000; 10_000];
    let far = best(3, || Order::in_blocks(3, &sizes, 16).slice(1_000_000_000, 32)).0;
    println!("an order over 10^8 samples gives position 10^9 after {far:.3?}");
    // Reading alone, with pictures of the usual size.
    let dir = tempfile::tempdir().unwrap();
    let picture = vec![7; 43_600];
    for number in 0..10 {
        let mut shard = Shard::new();
        for sample in 0..1000 {
            shard
                .member(&format!("{number}-{sample}.jpg"), &picture)
                .member(&format!("{number}-{sample}.txt"), b"a text");
        }
        write(dir.path(), &format!("{number}.tar"), &shard.bytes());
    }
    let index = Index::open(&[dir.path().display().to_string()]).unwrap();
    let mut buffer = Vec::new();
    let read = |sample| index.read_raw(sample, &mut buffer).unwrap().image.len();
    let (spent, bytes) = {
        let mut read = read;
        best(3, || (0..index.len()).map(&mut read).sum::<usize>())
    };
    let rate = index.len() as f64 / spent.as_secs_f64();
    println!("reading alone, one thread, {} B a picture: {rate:.0} samples/s", bytes / index.len());
}
