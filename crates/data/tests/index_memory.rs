//! What an index costs: every rank holds one of all samples. `docs/data.md` tells the figures.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use data::Index;
use data::index_file::{ShardIndex, Stamp, path_beside};
use data::scan::{ImageKind, Members, ShardScan, Span};

const SHARDS: u64 = 100;
const SAMPLES: u64 = 10_000;
/// A picture, a caption and a `.json`, each behind its header.
const STRIDE: u64 = 64 << 10;

/// `VmRSS` or `VmHWM` of this process, in bytes.
fn memory(which: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// A shard without contents whose index file tells of `SAMPLES`, named as img2dataset names them.
fn write_shard(folder: &Path, shard: u64) {
    let path = folder.join(format!("{shard:05}.tar"));
    let file = File::create(&path).unwrap();
    file.set_len(SAMPLES * STRIDE).unwrap();
    let metadata = file.metadata().unwrap();
    let modified_ns = metadata.mtime() as u64 * 1_000_000_000 + metadata.mtime_nsec() as u64;
    let members = |sample: u64| {
        let span = |at: u64, size: u64| Span { offset: sample * STRIDE + at, size };
        Members {
            key: format!("{shard:05}{sample:04}").into(),
            image: span(512, 40_000),
            image_kind: ImageKind::Jpeg,
            text: Some(span(41_472, 60)),
            json: Some(span(42_496, 400)),
        }
    };
    let scan =
        ShardScan { samples: (0..SAMPLES).map(members).collect(), seen: SAMPLES, ..ShardScan::default() };
    let stamp = Stamp { size: metadata.len(), modified_ns, sha256: None };
    ShardIndex { stamp, scan }.write(&path_beside(&path)).unwrap();
}

#[test]
fn long_a_million_samples_take_few_bytes_each() {
    let dir = tempfile::tempdir().unwrap();
    // In a thread of its own, whose memory is not what the index is made of again.
    std::thread::scope(|scope| {
        scope.spawn(|| (0..SHARDS).for_each(|shard| write_shard(dir.path(), shard)));
    });
    let (before, started) = (memory("VmRSS"), std::time::Instant::now());
    let index = Index::open(&[dir.path().display().to_string()]).unwrap();
    let (samples, seconds) = (index.len() as f64, started.elapsed().as_secs_f64());
    let (after, peak) = ((memory("VmRSS") - before) / samples, (memory("VmHWM") - before) / samples);
    assert_eq!(index.len() as u64, SHARDS * SAMPLES);
    println!("{after:.0} bytes a sample, {peak:.0} while opening, {seconds:.2} s");
    assert!(after < 100.0 && peak < 300.0, "{after} bytes a sample, {peak} while opening");
}
