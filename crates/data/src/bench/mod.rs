//! How fast the loader is, on one core, beside a Python loader on the same files.
//!
//! The command has pinned itself to one core; its threads and the peer's process inherit that. Our loader and the peer take
//! turns, so that whatever else runs on the machine meets both.

mod peer;
mod photos;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peer::Peer;

use crate::decode::{DecodeOptions, Decoded, decode_into};
use crate::error::DataError;
use crate::index::Index;
use crate::loader::{Loader, LoaderSpec};
use crate::order::Order;
use crate::transform::{Transform, TransformConfig};

/// Turns that our loader and the peer take.
const ROUNDS: usize = 4;
/// Pictures of one batch, of ours and of the peer's.
const BATCH: usize = 32;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Where the shards are made, and found again.
    pub dir: PathBuf,
    /// Seconds of measuring, all rates together.
    pub seconds: f64,
    /// Python of the peer's environment; `None` measures without a peer.
    pub peer: Option<PathBuf>,
    /// The core that the caller has pinned this process to; `None` where the system refused.
    pub core: Option<usize>,
}

/// What was measured. Rates are per second of wall time on one core, medians over turns.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BenchReport {
    /// 500x375 JPEG in a shard to a 224 training view in a batch, by our loader with one thread.
    pub images_per_second: f64,
    /// The same by the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_images_per_second: Option<f64>,
    /// Median over turns of ours divided by theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_peer: Option<f64>,
    /// The limit: JPEG to RGB, the whole picture, and nothing else. A view needs the colours of its crop alone.
    pub decode_only_images_per_second: f64,
    /// JPEG to training view, without loader, batches and shards: what the loader costs is the difference.
    pub views_only_images_per_second: f64,
    /// Pictures and captions read out of the shards, and nothing else.
    pub read_only_samples_per_second: f64,
    /// The same for samples of 1 KB.
    pub read_small_samples_per_second: f64,
    /// Mean size of a JPEG in bytes.
    pub jpeg_bytes: u64,
    /// The core that everything ran on; `None` where the system refused to pin.
    pub core: Option<usize>,
}

impl BenchReport {
    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// Errors of the bench.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The shards cannot be made: mend the folder.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The peer cannot be run: set it up.
    #[error("the peer {}: {problem}; `scripts/bench --peers` sets it up", python.display())]
    Peer {
        /// The Python.
        python: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// Our loader failed.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Makes the shards if they are not there and measures; `say` is told what goes on.
pub fn bench_loader(options: &BenchOptions, say: &dyn Fn(&str)) -> Result<BenchReport, BenchError> {
    let written = |source| BenchError::Write { path: options.dir.clone(), source };
    let photos = photos::photo_shards(&options.dir, say).map_err(written)?;
    let small = photos::small_shard(&options.dir).map_err(written)?;
    let index = Arc::new(Index::open(&names(&photos))?);
    let small = Index::open(&names(&[small]))?;
    let turn = Duration::from_secs_f64((options.seconds / 3.0 / ROUNDS as f64).max(0.1));
    let short = turn.max(Duration::from_millis(500));
    say("reading and decoding alone");
    let files = read_all(&index)?;
    let jpeg_bytes = files.iter().map(|file| file.len() as u64).sum::<u64>() / files.len().max(1) as u64;
    let decode_only_images_per_second = decode_rate(&files, short);
    let views_only_images_per_second = view_rate(&files, short)?;
    let read_only_samples_per_second = read_rate(&index, short)?;
    let read_small_samples_per_second = read_rate(&small, short)?;
    let mut ours = Ours::start(&index)?;
    let mut peer =
        options.peer.as_deref().map(|python| Peer::start(python, &options.dir, &photos)).transpose()?;
    let mut turns = Vec::new();
    for round in 1..=ROUNDS {
        say(&format!("round {round} of {ROUNDS}"));
        let rate = ours.rate(turn)?;
        let theirs = peer.as_mut().map(|peer| peer.rate(turn)).transpose()?;
        turns.push((rate, theirs));
    }
    Ok(BenchReport {
        images_per_second: median(turns.iter().map(|turn| turn.0)).unwrap_or(0.0),
        peer_images_per_second: median(turns.iter().filter_map(|turn| turn.1)),
        ratio_to_peer: median(turns.iter().filter_map(|(ours, theirs)| Some(ours / (*theirs)?))),
        decode_only_images_per_second,
        views_only_images_per_second,
        read_only_samples_per_second,
        read_small_samples_per_second,
        jpeg_bytes,
        core: options.core,
    })
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// Our loader as a training run uses it: one thread, shuffled, captions read, pixels made.
struct Ours {
    loader: Loader,
}

impl Ours {
    fn start(index: &Arc<Index>) -> Result<Self, DataError> {
        let order = Arc::new(Order::in_blocks(1, &index.shard_sizes(0), 16));
        let transform = Arc::new(Transform::new(TransformConfig::default())?);
        let spec = LoaderSpec {
            global_batch: BATCH,
            transform: Some(transform),
            ..LoaderSpec::new(Arc::clone(index), order, 1)
        };
        Ok(Self { loader: Loader::start(spec)? })
    }

    /// Images per second over `time`.
    fn rate(&mut self, time: Duration) -> Result<f64, DataError> {
        // The thread worked ahead while nobody measured: what it holds, and what it is busy with, is not counted.
        for _ in 0..4 {
            self.loader.next_batch()?;
        }
        let start = Instant::now();
        let mut images = 0;
        while start.elapsed() < time {
            images += self.loader.next_batch()?.texts.len();
        }
        Ok(images as f64 / start.elapsed().as_secs_f64())
    }
}

fn read_all(index: &Index) -> Result<Vec<Vec<u8>>, DataError> {
    (0..index.len()).map(|sample| index.read_image(sample).map_err(|error| whole(&error))).collect()
}

/// A sample of our own shards that cannot be read: somebody else changed them.
fn whole(error: &crate::error::SampleError) -> DataError {
    DataError::ShardChanged { shard: error.shard.to_string(), problem: error.to_string() }
}

fn decode_rate(files: &[Vec<u8>], time: Duration) -> f64 {
    let mut decoded = Decoded::default();
    let options = DecodeOptions::default();
    rate(time, files.len(), |number| {
        // The same files were decoded when they were made.
        let _ = decode_into(&files[number], &options, &mut decoded);
    })
}

fn view_rate(files: &[Vec<u8>], time: Duration) -> Result<f64, DataError> {
    let transform = Transform::new(TransformConfig::default())?;
    let mut values = vec![0.0; 3 * transform.config().image_size.pow(2)];
    Ok(rate(time, files.len(), |number| {
        let _ = transform.train_file(&files[number], 1, number as u64, 0, &mut values);
    }))
}

fn read_rate(index: &Index, time: Duration) -> Result<f64, DataError> {
    let mut buffer = Vec::new();
    let mut failed = None;
    let rate = rate(time, index.len(), |number| {
        if let Err(error) = index.read_raw(number, &mut buffer) {
            failed = Some(error);
        }
    });
    failed.map_or(Ok(rate), |error| Err(whole(&error)))
}

/// How often per second `work` can be done, for the numbers below `count` in turn, after one round that warms up.
fn rate(time: Duration, count: usize, mut work: impl FnMut(usize)) -> f64 {
    (0..count).for_each(&mut work);
    let start = Instant::now();
    let mut done = 0u64;
    while start.elapsed() < time {
        (0..count).for_each(&mut work);
        done += count as u64;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// The middle one of `values`, the mean of the middle two where there is none; `None` for no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Where `python` of the peers' environment is, below the user's cache folder.
pub fn peer_python(cache: &Path) -> PathBuf {
    cache.join("peers/bin/python")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn the_bench_measures_and_finds_its_shards_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = BenchOptions { dir: dir.path().to_owned(), seconds: 0.1, peer: None, core: None };
        // On a thread of its own, which alone gets pinned.
        let run =
            || std::thread::scope(|scope| scope.spawn(|| bench_loader(&options, &|_| {})).join().unwrap());
        let report = run().unwrap();
        assert!(report.images_per_second > 0.0 && report.decode_only_images_per_second > 0.0);
        assert!(report.read_small_samples_per_second > report.decode_only_images_per_second);
        assert!(report.ratio_to_peer.is_none());
        let made = |dir: &Path| {
            let list = std::fs::read_dir(dir).unwrap().flatten();
            list.map(|entry| entry.metadata().unwrap().modified().unwrap()).max().unwrap()
        };
        let before = made(dir.path());
        run().unwrap();
        assert_eq!(made(dir.path()), before);
    }

    #[test]
    fn a_missing_peer_is_named_with_the_way_to_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let python = dir.path().join("no-python");
        let error = Peer::start(&python, dir.path(), &[]).err().unwrap().to_string();
        assert!(error.contains("no-python") && error.contains("scripts/bench --peers"), "{error}");
    }
}
