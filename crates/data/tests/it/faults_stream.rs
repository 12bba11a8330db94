//! D7 and D9 of the matrix: any sizes, and many bad samples.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Shard, global_batches, jpeg, spec, write};
use data::{DataError, Index, Loader, LoaderSpec, SkipReason, Transform, TransformConfig};
use nix::time::{ClockId, clock_gettime};

fn counted(pairs: &[(SkipReason, u64)]) -> BTreeMap<SkipReason, u64> {
    pairs.iter().copied().collect()
}

#[test]
fn d7_any_number_of_ranks_batches_and_samples_makes_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = data::Rng::new(7, data::Stream::Subset, &[]);
    for trial in 0..100 {
        let samples = 1 + rng.below(20) as usize;
        let shards = 1 + rng.below(3) as usize;
        let world_size = 1 + rng.below(6) as usize;
        let global_batch = world_size + rng.below(30) as usize;
        let folder = dir.path().join(trial.to_string());
        std::fs::create_dir(&folder).unwrap();
        let pattern = crate::common::write_shards(&folder, shards, samples);
        let index = Arc::new(Index::open(&[pattern]).unwrap());
        let spec = LoaderSpec { global_batch, workers: 1, ..spec(index) };
        let (joined, _) = global_batches(&spec, world_size, 0, 4);
        assert!(joined.iter().all(|batch| batch.len() == global_batch), "{trial}");
        let drawn: Vec<usize> = joined.iter().flatten().map(|row| row.0).collect();
        let order: Vec<usize> = spec.order.slice(0, 4 * global_batch).iter().map(|at| at.index).collect();
        assert_eq!(drawn, order, "{trial}");
    }
    let index = Arc::new(Index::open(&[dir.path().join("0").display().to_string()]).unwrap());
    let error = Loader::start(LoaderSpec { global_batch: 2, world_size: 3, ..spec(index) }).unwrap_err();
    assert!(error.to_string().contains("global_batch"), "{error}");
}

/// `total` samples, of which the first and every `step`-th behind it hold no picture; with 0 all hold one.
fn with_bad_samples(dir: &std::path::Path, name: &str, total: usize, step: usize) -> String {
    let picture = jpeg(160, 120);
    let mut shard = Shard::new();
    for number in 0..total {
        let bytes = if number.checked_rem(step) == Some(0) { &b"not a picture"[..] } else { &picture };
        shard
            .member(&format!("{name}{number:05}.jpg"), bytes)
            .member(&format!("{name}{number:05}.txt"), b"text");
    }
    write(dir, &format!("{name}.tar"), &shard.bytes())
}

#[test]
fn d9_too_many_bad_samples_end_the_run_and_name_the_shard() {
    let dir = tempfile::tempdir().unwrap();
    let good = with_bad_samples(dir.path(), "good", 200, 1000);
    let bad = with_bad_samples(dir.path(), "bad", 100, 1);
    let transform =
        Arc::new(Transform::new(TransformConfig { image_size: 32, ..TransformConfig::default() }).unwrap());
    let index = Arc::new(Index::open(&[good, bad]).unwrap());
    let spec =
        LoaderSpec { global_batch: 30, transform: Some(transform), max_skipped_ratio: 0.05, ..spec(index) };
    let mut loader = Loader::start(spec.clone()).unwrap();
    let error = (0..20).find_map(|_| loader.next_batch().err()).unwrap();
    assert!(matches!(error, DataError::TooManySkipped { limit: 0.05, .. }), "{error}");
    assert!(error.to_string().contains("bad.tar: image_format_unknown"), "{error}");
    // Borne, every batch keeps its size and the counts are exact: 101 bad samples an epoch.
    let spec = LoaderSpec { max_skipped_ratio: 0.5, ..spec };
    for world_size in [1, 3] {
        let (joined, skipped) = global_batches(&spec, world_size, 0, 10);
        assert!(joined.iter().all(|batch| batch.len() == 30));
        assert_eq!(skipped, counted(&[(SkipReason::ImageFormatUnknown, 101)]));
        assert_eq!(joined.iter().flatten().filter(|row| row.0 != row.1).count(), 101);
    }
}

#[test]
fn d9_no_good_sample_at_all_is_the_same_error() {
    let dir = tempfile::tempdir().unwrap();
    let bad = with_bad_samples(dir.path(), "bad", 40, 1);
    let transform = Arc::new(Transform::new(TransformConfig::default()).unwrap());
    let index = Arc::new(Index::open(&[bad]).unwrap());
    let mut loader = Loader::start(LoaderSpec { transform: Some(transform), ..spec(index) }).unwrap();
    let error = loader.next_batch().unwrap_err();
    assert!(matches!(error, DataError::TooManySkipped { .. }), "{error}");
}

/// How often each sample of one epoch in batches of `batch` is shown in place of another.
fn stood_in(spec: &LoaderSpec, batch: usize, batches: usize) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    let (joined, _) = global_batches(&LoaderSpec { global_batch: batch, ..spec.clone() }, 1, 0, batches);
    for (_, shown, _) in joined.into_iter().flatten().filter(|row| row.0 != row.1) {
        *counts.entry(shown).or_default() += 1;
    }
    counts
}

fn streamed(patterns: &[String]) -> LoaderSpec {
    let transform = TransformConfig { image_size: 16, ..TransformConfig::default() };
    let transform = Some(Arc::new(Transform::new(transform).unwrap()));
    LoaderSpec { transform, ..spec(Arc::new(Index::open(patterns).unwrap())) }
}

#[test]
fn d9_a_bad_stretch_does_not_show_one_sample_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let bad = with_bad_samples(dir.path(), "0bad", 300, 1);
    let good = with_bad_samples(dir.path(), "1good", 300, 1000);
    let counts = stood_in(&streamed(&[bad, good]), 60, 10);
    assert_eq!(counts.values().sum::<usize>(), 301);
    assert!(counts.values().all(|&count| count < 12), "{counts:?}");
    assert!(counts.len() > 150, "{}", counts.len());
}

#[test]
fn d9_stand_ins_are_the_same_in_every_epoch_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let patterns = [with_bad_samples(dir.path(), "a", 60, 3), with_bad_samples(dir.path(), "b", 30, 2)];
    let spec = LoaderSpec { global_batch: 30, ..streamed(&patterns) };
    // Batches 3 to 5 of one process know what is bad; a process that starts there does not.
    let (all, _) = global_batches(&spec, 1, 0, 6);
    assert_eq!(all[3..], global_batches(&spec, 2, 90, 3).0);
    let of_epoch = |batches: &[crate::common::Global]| -> BTreeMap<usize, usize> {
        batches.iter().flatten().map(|&(drawn, shown, _)| (drawn, shown)).collect()
    };
    assert_eq!(of_epoch(&all[..3]), of_epoch(&all[3..]));
}

#[test]
fn d9_one_good_sample_is_found_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let bad = with_bad_samples(dir.path(), "bad", 100, 1);
    let last = with_bad_samples(dir.path(), "last", 2, 2);
    let counts = stood_in(&streamed(&[bad, last]), 102, 1);
    assert_eq!(counts, BTreeMap::from([(101, 101)]));
}

#[test]
fn bytes_that_the_disk_does_not_give_end_the_run_and_are_no_bad_sample() {
    let dir = tempfile::tempdir().unwrap();
    let good = with_bad_samples(dir.path(), "good", 40, 1000);
    let spec = LoaderSpec { workers: 1, ..streamed(&[good]) };
    let mut loader = Loader::start(spec).unwrap();
    loader.next_batch().unwrap();
    // The shard is open, and its size was as indexed.
    std::fs::File::options().write(true).open(dir.path().join("good.tar")).unwrap().set_len(512).unwrap();
    let error = (0..40).find_map(|_| loader.next_batch().err()).unwrap();
    assert!(matches!(&error, DataError::Unreadable { shard, .. } if shard.ends_with("good.tar")), "{error}");
    assert!(error.is_of_disk_or_server());
}

#[test]
fn long_d9_one_percent_of_bad_samples_costs_at_most_two_percent() {
    let dir = tempfile::tempdir().unwrap();
    let transform = Arc::new(Transform::new(TransformConfig::default()).unwrap());
    let loader = |pattern: String| {
        let index = Arc::new(Index::open(&[pattern]).unwrap());
        let transform = Some(Arc::clone(&transform));
        LoaderSpec { global_batch: 100, transform, workers: 1, ..spec(index) }
    };
    let clean = loader(with_bad_samples(dir.path(), "clean", 24_000, 0));
    let dirty = loader(with_bad_samples(dir.path(), "dirty", 24_000, 100));
    let [mut clean, mut dirty] = [clean, dirty].map(|spec| Loader::start(spec).unwrap());
    // A part of the epoch of each in turns: what else the machine has to do comes and goes, and reaches both. There is
    // one epoch only, for in the next a loader knows what is bad.
    let mut ratios: Vec<f64> = Vec::new();
    for _ in 0..60 {
        let [clean, dirty] = [&mut clean, &mut dirty].map(|loader| {
            let started = cpu_at_rest();
            (0..4).for_each(|_| drop(loader.next_batch().unwrap()));
            (cpu_at_rest() - started).as_secs_f64()
        });
        ratios.push(dirty / clean);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("1 % bad samples: {:.1} % of the clean CPU time", 100.0 * median);
    assert!(median <= 1.02, "{ratios:?}");
}

/// CPU time of this process, taken when its loaders have read ahead as far as they may: between two of these, so many
/// batches were made as were taken.
fn cpu_at_rest() -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
    loop {
        let before = now();
        std::thread::sleep(Duration::from_millis(30));
        if now() - before < Duration::from_millis(1) {
            return now();
        }
    }
}
