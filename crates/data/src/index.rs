//! Where every sample lies: set, shard, offsets and sizes, out of index files or one scan of the tar headers.
//!
//! A shard whose index file ([`crate::index_file`]) still fits it is not scanned, and a run keeps its scans for the
//! next. What is wrong inside a shard is counted and the rest is used, also when the whole file is no tar; a shard that
//! is not there ends the run, because then the config names the wrong thing. Keys are unique inside one folder:
//! img2dataset numbers the keys of every data set alike.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use sha2::{Digest, Sha256};

use crate::counters::Counters;
use crate::entries::Entries;
pub use crate::entries::SampleEntry;
use crate::error::{DataError, SkipReason};
use crate::index_file::{ShardIndex, Stamp, hex, path_beside};
use crate::local;
use crate::location::Location;
use crate::open_shards::OpenShards;
use crate::pattern;
use crate::remote::{Remote, RemoteOptions};
use crate::scan::MAX_MEMBERS;
pub use crate::scan::{ImageKind, Span};

/// Shards that are scanned at once; remote ones wait for the network, not for the processor.
const LOCAL_THREADS: usize = 8;
const REMOTE_THREADS: usize = 16;
/// Shards of each thread whose own lists are in memory, before they go into the table.
const LISTS: usize = 2;

/// All usable samples of one or several sets of shards, in the order in which they lie there.
#[derive(Debug)]
pub struct Index {
    shards: Vec<Shard>,
    sets: Vec<Range<usize>>,
    entries: Entries,
    problems: Counters,
    digest: String,
    remote: Option<Remote>,
    open: OpenShards,
}

#[derive(Debug)]
struct Shard {
    location: Location,
    name: Arc<str>,
    stamp: Stamp,
    samples: Range<usize>,
    /// Why it gave nothing at all, if it is broken.
    lost: Option<SkipReason>,
}

impl Index {
    /// The local shards that `patterns` name ([`pattern::shards`]) as one set.
    ///
    /// Problems inside shards are counted in [`Index::problems`]. Errors: a shard is missing, unreadable or too large; no
    /// usable sample is left over all shards.
    pub fn open(patterns: &[String]) -> Result<Self, DataError> {
        Self::open_sets(&[patterns.to_vec()], None)
    }

    /// As [`Index::open`], for the sets of a mixture and for URLs.
    ///
    /// With `remote` the scan of a local shard is kept beside it, or in the cache folder where that cannot be written on.
    /// Without `remote` a URL is refused. Further errors: a server that cannot be reached in time
    /// ([`DataError::Unreadable`]).
    pub fn open_sets(sets: &[Vec<String>], remote: Option<RemoteOptions>) -> Result<Self, DataError> {
        let mut locations = Vec::new();
        let mut ranges = Vec::new();
        for patterns in sets {
            let first = locations.len();
            locations.extend(pattern::shards(patterns)?);
            ranges.push(first..locations.len());
        }
        // Where all is local, no folder of copies is needed; scans go there that cannot stand beside their shards.
        let scans = remote.as_ref().map(|options| options.cache_dir.clone());
        let needed = locations.iter().any(|location| matches!(location, Location::Remote(_)));
        let remote = remote.filter(|_| needed).map(Remote::new).transpose()?;
        let mut index = Self {
            shards: Vec::with_capacity(locations.len()),
            sets: ranges,
            entries: Entries::default(),
            problems: Counters::default(),
            digest: String::new(),
            remote,
            open: OpenShards::default(),
        };
        let mut keys = HashMap::new();
        let mut left = locations.into_iter();
        let threads = threads(if needed { REMOTE_THREADS } else { LOCAL_THREADS });
        loop {
            let some: Vec<Location> = left.by_ref().take(LISTS * threads).collect();
            if some.is_empty() {
                break;
            }
            let indexes = load_all(&some, threads, index.remote.as_ref(), scans.as_deref())?;
            for (location, shard_index) in some.into_iter().zip(indexes) {
                let keys: &mut HashSet<u128> = keys.entry(location.folder()).or_default();
                index.add_shard(location, shard_index, keys)?;
            }
        }
        index.entries.close();
        if index.is_empty() {
            let (shards, problems) = (index.shards.len(), index.problems.worst(5));
            let patterns = sets.iter().flatten().map(|pattern| crate::location::redacted(pattern)).collect();
            return Err(DataError::Empty { patterns, shards, problems });
        }
        index.digest = index.entries.digest();
        Ok(index)
    }

    fn add_shard(
        &mut self,
        location: Location,
        index: ShardIndex,
        keys: &mut HashSet<u128>,
    ) -> Result<(), DataError> {
        let first = self.entries.len();
        self.entries.begin_shard();
        let name: Arc<str> = location.to_string().into();
        if index.scan.problems.contains_key(&SkipReason::ShardTooLarge) {
            // The first part of it would pass for the whole.
            return Err(DataError::ShardTooLarge { shard: name.to_string(), most: MAX_MEMBERS });
        }
        let mut ends = index.scan.problems.keys().copied().filter(|reason| reason.ends_a_shard());
        let lost = ends.next().filter(|_| index.scan.samples.is_empty());
        self.problems.seen += index.scan.seen;
        for (reason, count) in index.scan.problems {
            *self.problems.skipped.entry((Arc::clone(&name), reason)).or_default() += count;
        }
        for sample in &index.scan.samples {
            if !keys.insert(fingerprint(&sample.key)) {
                self.problems.add(&name, SkipReason::DuplicateKey);
            } else if !self.entries.push(sample) {
                self.problems.add(&name, SkipReason::EntryUnsupported);
            }
        }
        let samples = first..self.entries.len();
        self.shards.push(Shard { location, name, stamp: index.stamp, samples, lost });
        Ok(())
    }

    /// Number of usable samples.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true of an index that [`Index::open`] returned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `number` of [`Index::len`], in shard order.
    pub fn entry(&self, number: usize) -> SampleEntry<'_> {
        self.entries.get(number)
    }

    /// Name of shard `number` as it is shown in messages and counters; no query of a URL is in it.
    pub fn shard(&self, number: u32) -> &Arc<str> {
        &self.shards[number as usize].name
    }

    /// Samples of shard `number`.
    pub(crate) fn samples_of(&self, number: u32) -> Range<usize> {
        self.shards[number as usize].samples.clone()
    }

    /// Number of shards.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// Shard numbers of each set, in the order in which the sets were named.
    pub fn sets(&self) -> &[Range<usize>] {
        &self.sets
    }

    /// Usable samples of each shard of set `number`: what its order is made from.
    pub fn shard_sizes(&self, number: usize) -> Vec<usize> {
        self.shards[self.sets[number].clone()].iter().map(|shard| shard.samples.len()).collect()
    }

    /// Whether a shard is read from elsewhere.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some() && self.shards.iter().any(|shard| matches!(shard.location, Location::Remote(_)))
    }

    /// What the scan found wrong, by shard and reason; `seen` counts all keys, usable or not.
    pub fn problems(&self) -> &Counters {
        &self.problems
    }

    /// Whether more than `limit` of the samples found, or of the shards, is bad: [`Counters::check`] for the samples.
    ///
    /// A broken shard counts as one problem however much stood in it, so shards are judged by themselves.
    pub fn check(&self, limit: f64) -> Result<(), DataError> {
        self.problems.check(limit)?;
        let lost = || self.shards.iter().filter_map(|shard| shard.lost.map(|reason| (&shard.name, reason)));
        let (count, shards) = (lost().count(), self.shards.len());
        if count as f64 <= limit * shards as f64 {
            return Ok(());
        }
        let names: Vec<String> = lost().take(5).map(|(name, reason)| format!("{name}: {reason}")).collect();
        Err(DataError::ShardsLost { lost: count, shards, limit, names: names.join("; ") })
    }

    /// SHA-256 over keys, shard numbers, offsets and sizes, in hex: two runs with equal digests see equal samples.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Shard `number`, open for reading; a remote one is fetched into the cache if it is not there.
    ///
    /// Errors end a run: the shard is gone, is not the size that was indexed, or its server gave up.
    pub fn open_shard(&self, number: u32) -> Result<Arc<File>, DataError> {
        if let Some(file) = self.open.get(number) {
            return Ok(file);
        }
        // Fetching takes long: others may read meanwhile.
        let shard = &self.shards[number as usize];
        let file = Arc::new(self.find(shard)?);
        self.open.keep(number, &file, matches!(shard.location, Location::Remote(_)));
        Ok(file)
    }

    /// Whether `thread` waits for the server of a shard.
    pub(crate) fn waits_for_server(&self, thread: ThreadId) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.waits.holds(thread))
    }

    fn find(&self, shard: &Shard) -> Result<File, DataError> {
        match (&shard.location, &self.remote) {
            (Location::Local(path), _) => {
                let (file, metadata) = local::open(path)?;
                if metadata.len() == shard.stamp.size {
                    return Ok(file);
                }
                let problem = format!("{} bytes, {} when indexed", metadata.len(), shard.stamp.size);
                Err(DataError::ShardChanged { shard: shard.name.to_string(), problem })
            }
            (Location::Remote(url), Some(remote)) => remote.shard(url, Some(&shard.stamp)),
            (Location::Remote(_), None) => Err(no_cache(&shard.location)),
        }
    }
}

/// Stands for a key where only its equal is looked for: 128 bits, so that of a thousand million keys no two meet.
fn fingerprint(key: &str) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, key).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// What [`write_index_files`] did.
#[derive(Debug)]
pub struct Written {
    /// Index files that were made; the others were there and fitted.
    pub made: usize,
    /// All shards, as an [`Index::open`] sees them from now on.
    pub index: Index,
}

/// Writes the index file beside each shard that lacks one which fits; with `contents` it holds the shard's SHA-256.
///
/// Only local shards: index them where they lie, then copy the index files with them.
pub fn write_index_files(patterns: &[String], contents: bool) -> Result<Written, DataError> {
    let shards = pattern::shards(patterns)?;
    let made = in_parallel(shards.len(), threads(LOCAL_THREADS), |number| {
        let Location::Local(path) = &shards[number] else {
            let problem = "index files are written beside local shards; copy them to the server".to_owned();
            return Err(DataError::Pattern { pattern: shards[number].to_string(), problem });
        };
        let (mut index, found) = local::index(path, None)?;
        if found && (!contents || index.stamp.sha256.is_some()) {
            return Ok(false);
        }
        let failed = |source| DataError::Unreadable { shard: path.display().to_string(), source };
        if contents {
            index.stamp.sha256 = Some(sha256(&local::open(path)?.0).map_err(failed)?);
        }
        let beside = path_beside(path);
        index.write(&beside).map_err(|source| DataError::Unwritable { path: beside, source })?;
        Ok(true)
    })?;
    let made = made.into_iter().filter(|made| *made).count();
    Ok(Written { made, index: Index::open(patterns)? })
}

fn load_all(
    locations: &[Location],
    threads: usize,
    remote: Option<&Remote>,
    scans: Option<&Path>,
) -> Result<Vec<ShardIndex>, DataError> {
    in_parallel(locations.len(), threads, |number| match (&locations[number], remote) {
        (Location::Local(path), _) => local::kept_index(path, scans),
        (Location::Remote(url), Some(remote)) => remote.index(url),
        (location, None) => Err(no_cache(location)),
    })
}

/// Waiting costs no processor, so there may be more threads than cores, but not many.
fn threads(most: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    most.min(if most == REMOTE_THREADS { most } else { cores })
}

fn no_cache(location: &Location) -> DataError {
    let problem = "a URL needs a cache folder; none was given".to_owned();
    DataError::Pattern { pattern: location.to_string(), problem }
}

/// SHA-256 of a whole file in hex.
pub(crate) fn sha256(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// `work` for each of `0..count` on up to `threads` threads; results in order, or one of the errors.
fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, DataError> + Sync,
) -> Result<Vec<T>, DataError> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(count));
    let run = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return;
        }
        let result = work(number);
        if result.is_err() {
            next.store(count, Ordering::Relaxed);
        }
        results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(run);
        }
        run();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
