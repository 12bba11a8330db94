//! Shards that lie elsewhere, read through a bounded cache of whole shards on this machine.
//!
//! A download goes on where it was cut, waits longer after each failure, and has a deadline. What is in the cache is
//! named by the full URL and the version (ETag) of the object, so no two shards are ever taken for each other. A run
//! holds on to the version that it first saw: another one is refused, because then the order would name samples that
//! are no longer there.

mod cache;
#[cfg(feature = "cloud")]
mod cloud;
mod download;
mod http;
mod http_date;
mod retry;
mod store;
mod waits;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::DataError;
use crate::index::sha256;
use crate::index_file::{SUFFIX, ShardIndex, Stamp};
use crate::location::{Scheme, Url};
use crate::scan::scan;
use cache::{Cache, Note};
use download::{Download, Part, fetch_text};
use http::Http;
use store::{Condition, Reply, Store};
pub(crate) use waits::Waits;

/// Where copies are kept, and how patient a download is.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// Folder of the copies; ranks and runs of one machine may share it.
    pub cache_dir: PathBuf,
    /// The folder holds at most this many bytes of shards, begun downloads and scans, beside those that are being
    /// fetched; the least recently read go first. It should hold the blocks of shards that are read together twice
    /// over. A process keeps 16 shards open, whose bytes stay on the disk if they are dropped meanwhile.
    pub cache_bytes: u64,
    /// Until a server answers at all.
    pub connect_timeout: Duration,
    /// Without a byte for so long, a download is cut and goes on with a new request.
    pub stall_timeout: Duration,
    /// A shard that is not here after this time ends the run.
    pub shard_deadline: Duration,
    /// Failures in a row, without a byte between them, that end the run.
    pub attempts: u32,
    /// Wait after the first failure; doubled after each, up to 30 s, drawn from its upper half. A server's
    /// `Retry-After` wins when it is longer.
    pub backoff: Duration,
}

impl RemoteOptions {
    /// 64 GiB in `cache_dir`, 10 s to connect, 20 s without a byte, 15 minutes a shard, 8 attempts from 0.25 s on.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            cache_bytes: 64 << 30,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(20),
            shard_deadline: Duration::from_secs(900),
            attempts: 8,
            backoff: Duration::from_millis(250),
        }
    }
}

/// The reader of remote shards.
#[derive(Debug)]
pub(crate) struct Remote {
    options: RemoteOptions,
    cache: Cache,
    http: Http,
    #[cfg(feature = "cloud")]
    cloud: cloud::Cloud,
    /// Version of each URL that this run has seen.
    versions: Mutex<HashMap<String, String>>,
    /// Threads that a shard keeps waiting.
    pub(crate) waits: Waits,
}

impl Remote {
    pub(crate) fn new(options: RemoteOptions) -> Result<Self, DataError> {
        Ok(Self {
            cache: Cache::open(&options.cache_dir, options.cache_bytes)?,
            http: Http::new(&options),
            #[cfg(feature = "cloud")]
            cloud: cloud::Cloud::new(&options)?,
            versions: Mutex::default(),
            waits: Waits::default(),
            options,
        })
    }

    fn store(&self, url: &Url) -> &dyn Store {
        match url.scheme() {
            Scheme::Http => &self.http,
            #[cfg(feature = "cloud")]
            Scheme::S3 | Scheme::Gs | Scheme::Az => &self.cloud,
        }
    }

    /// The index of the shard at `url`: the file beside it, or a scan of the shard itself, kept in the cache.
    pub(crate) fn index(&self, url: &Url) -> Result<ShardIndex, DataError> {
        let beside = url.beside(SUFFIX);
        if let Some(text) = fetch_text(self.store(url), &beside, &self.options)?
            && let Some(index) = ShardIndex::decode(&text)
        {
            return Ok(index);
        }
        let file = self.shard(url, None)?;
        let kept = self.version(url).map(|version| self.cache.index_path(url, &version));
        if let Some(index) = kept.as_deref().and_then(ShardIndex::read) {
            return Ok(index);
        }
        let unreadable = |source| DataError::Unreadable { shard: url.to_string(), source };
        let size = file.metadata().map_err(unreadable)?.len();
        let stamp = Stamp { size, modified_ns: 0, sha256: None };
        let index = ShardIndex { scan: scan(&file).map_err(unreadable)?, stamp };
        if let Some(path) = kept {
            index.write(&path).map_err(|source| DataError::Unwritable { path, source })?;
        }
        Ok(index)
    }

    /// The shard at `url`, open; it stays readable when the cache drops it. `stamp` is what it was when indexed.
    pub(crate) fn shard(&self, url: &Url, stamp: Option<&Stamp>) -> Result<File, DataError> {
        let known = self.version(url);
        let held =
            |version: &Option<String>| version.as_ref().and_then(|version| self.cache.shard(url, version));
        if let Some(file) = held(&known) {
            return Ok(file);
        }
        // A deadline is looked at between bytes, for which a server has the time of a stall.
        let patience = self.options.shard_deadline + self.options.stall_timeout;
        let wait = self.waits.begin(patience);
        // One download of a shard at a time, over all ranks of this machine.
        let _lock = self.cache.lock(url)?;
        wait.renew(patience);
        let known = self.version(url);
        if let Some(file) = held(&known) {
            return Ok(file);
        }
        if known.is_none()
            && let Some(note) = self.cache.note(url)
            && let Some(file) = self.cache.shard(url, &note.version)
            && self.is_current(url, &note.version)?
        {
            self.check(url, &file, stamp, false)?;
            self.remember(url, note.version);
            return Ok(file);
        }
        self.download(url, stamp, known)
    }

    /// Fetches what the cache lacks; the caller holds the lock.
    fn download(&self, url: &Url, stamp: Option<&Stamp>, known: Option<String>) -> Result<File, DataError> {
        let mut part = Part::open(&self.cache, url)?;
        if known.is_some() && part.version() != known.as_deref() {
            part.restart(known.clone())?;
        }
        let download = Download {
            store: self.store(url),
            url,
            options: &self.options,
            cache: &self.cache,
            expected: stamp.map(|stamp| stamp.size),
            deadline: Instant::now() + self.options.shard_deadline,
        };
        // What an earlier run began may be of an older version; what this run has seen may not.
        let left_over = known.is_none() && part.is_begun();
        let mut result = download.run(&mut part);
        if left_over && matches!(result, Err(DataError::ShardChanged { .. })) {
            part.restart(None)?;
            result = download.run(&mut part);
        }
        if let Err(error) = result {
            if matches!(error, DataError::ShardChanged { .. }) {
                part.discard();
            }
            return Err(error);
        }
        if let Err(error) = self.check(url, part.file(), stamp, true) {
            part.discard();
            return Err(error);
        }
        let version = part.version().unwrap_or_default().to_owned();
        let file = part.finish(&self.cache, url, &Note { version: version.clone() })?;
        // Several downloads at once may have made room for themselves only. It is open, so it may go at once.
        self.cache
            .make_room(0)
            .map_err(|problem| DataError::Pattern { pattern: url.to_string(), problem })?;
        self.remember(url, version);
        Ok(file)
    }

    /// Whether `version` is still what lies at `url`.
    fn is_current(&self, url: &Url, version: &str) -> Result<bool, DataError> {
        if version.is_empty() {
            return Ok(false);
        }
        let deadline = Instant::now() + self.options.shard_deadline;
        retry::persist(url, &self.options, deadline, || {
            let reply = self.store(url).get(url, 0, Condition::Unlike(version));
            (false, reply.map(|reply| matches!(reply, Reply::Unchanged)))
        })
    }

    /// Compares a copy with what was indexed; `fresh` copies also by their digest.
    fn check(&self, url: &Url, file: &File, stamp: Option<&Stamp>, fresh: bool) -> Result<(), DataError> {
        let Some(stamp) = stamp else { return Ok(()) };
        let changed = |problem| DataError::ShardChanged { shard: url.to_string(), problem };
        let unreadable = |source| DataError::Unreadable { shard: url.to_string(), source };
        let size = file.metadata().map_err(unreadable)?.len();
        if size != stamp.size {
            return Err(changed(format!("{size} bytes, {} when indexed", stamp.size)));
        }
        match &stamp.sha256 {
            Some(expected) if fresh => {
                use std::io::Seek;
                let mut start = file;
                start.rewind().map_err(unreadable)?;
                let found = sha256(file).map_err(unreadable)?;
                if found == *expected {
                    Ok(())
                } else {
                    Err(changed("its SHA-256 is not the indexed one".into()))
                }
            }
            _ => Ok(()),
        }
    }

    fn version(&self, url: &Url) -> Option<String> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(url.full()).cloned()
    }

    fn remember(&self, url: &Url, version: String) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.insert(url.full().to_owned(), version);
    }
}
