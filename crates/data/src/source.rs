//! The part of a config that says where a stream's samples come from, and in which order.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::DataError;
use crate::index::Index;
use crate::mixture::{MixtureSet, Share, Unit};
use crate::order::Order;
use crate::remote::RemoteOptions;

/// Where copies of remote shards go unless a config says it.
pub const SHARD_CACHE: &str = "data/shard_cache";

/// Shards of a block where none is given and shards are remote.
const REMOTE_BLOCK: usize = 16;

/// Sets, order and cache of a stream. The default is one set of local shards under a full shuffle.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Sets to mix, instead of one list of shards.
    pub sets: Vec<SetConfig>,
    /// What is drawn from one set at a time.
    pub mix: Mix,
    /// Shards that are shuffled together. Without it: all of them where they are local and one set, else 16.
    pub shards_per_block: Option<usize>,
    /// Remote shards fetched ahead of the order. Without it: two blocks.
    pub shards_ahead: Option<usize>,
    /// Copies of remote shards.
    pub cache: CacheConfig,
}

/// One set of a mixture.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetConfig {
    /// Files, folders, brace patterns, list files, URLs.
    pub shards: Vec<String>,
    /// Its share in relation to the other sets' ratios. Either all sets have one or none.
    pub ratio: Option<f64>,
    /// Without `ratio`: how often as its size says (1 by default).
    pub repeats: Option<f64>,
    /// Passes after which it leaves the mixture.
    pub epochs: Option<u64>,
}

/// What is drawn from one set at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Samples: batches are mixed.
    #[default]
    Samples,
    /// Global batches: each is of one set, as LAVIS draws them.
    Batches,
}

/// Copies of remote shards.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Their folder; [`SHARD_CACHE`] by default.
    pub dir: Option<PathBuf>,
    /// Most GiB in it.
    pub max_gib: u64,
    /// Seconds for one shard, after which the run ends.
    pub shard_deadline_seconds: u64,
    /// Seconds without a byte, after which a download is cut and gone on with.
    pub stall_seconds: u64,
    /// Failures in a row that end the run.
    pub attempts: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { dir: None, max_gib: 64, shard_deadline_seconds: 900, stall_seconds: 20, attempts: 8 }
    }
}

impl CacheConfig {
    /// The index of these sets of shards, whose URLs are read by way of this cache. Errors: as [`Index::open_sets`].
    pub fn open(&self, sets: &[Vec<String>]) -> Result<Index, DataError> {
        Index::open_sets(sets, Some(self.options()))
    }

    fn options(&self) -> RemoteOptions {
        let dir = self.dir.clone().unwrap_or_else(|| SHARD_CACHE.into());
        RemoteOptions {
            cache_bytes: self.max_gib << 30,
            shard_deadline: Duration::from_secs(self.shard_deadline_seconds),
            stall_timeout: Duration::from_secs(self.stall_seconds),
            attempts: self.attempts,
            ..RemoteOptions::new(dir)
        }
    }
}

impl SourceConfig {
    /// The index of all sets, or of `shards` where no sets are given.
    ///
    /// Errors: as [`Index::open_sets`], and both `shards` and `sets`, or neither.
    pub fn open(&self, shards: &[String]) -> Result<Index, DataError> {
        let wrong =
            |problem: &str| DataError::Config { key: "data.source.sets".into(), problem: problem.to_owned() };
        let sets: Vec<Vec<String>> = match (self.sets.is_empty(), shards.is_empty()) {
            (true, false) => vec![shards.to_vec()],
            (false, true) => self.sets.iter().map(|set| set.shards.clone()).collect(),
            (true, true) => return Err(wrong("no shards are named, neither in one list nor in sets")),
            (false, false) => return Err(wrong("shards are named in a list and in sets; use one of them")),
        };
        self.cache.open(&sets)
    }

    /// The order that `seed` names over `index`, which [`SourceConfig::open`] gave. `global_batch` is the number of
    /// samples that all ranks together use in one pass.
    pub fn order(&self, seed: u64, index: &Index, global_batch: usize) -> Result<Order, DataError> {
        let per_block = self.shards_per_block.unwrap_or(REMOTE_BLOCK);
        if per_block == 0 {
            let problem = "must not be 0".to_owned();
            return Err(DataError::Config { key: "data.source.shards_per_block".into(), problem });
        }
        if self.sets.is_empty() {
            return Ok(match self.shards_per_block {
                None if !index.is_remote() => Order::new(seed, index.len()),
                _ => Order::in_blocks(seed, &index.shard_sizes(0), per_block),
            });
        }
        let mut sets = Vec::with_capacity(self.sets.len());
        for (number, set) in self.sets.iter().enumerate() {
            let share = set.share().map_err(|problem| DataError::Config {
                key: format!("data.source.sets[{number}]"),
                problem: problem.to_owned(),
            })?;
            sets.push(MixtureSet { shard_sizes: index.shard_sizes(number), share, epochs: set.epochs });
        }
        let unit = match self.mix {
            Mix::Samples => Unit::Sample,
            Mix::Batches => Unit::Batch(global_batch as u64),
        };
        Order::mixture(seed, &sets, unit, per_block)
    }

    /// For [`crate::LoaderSpec::shards_ahead`].
    pub fn shards_ahead(&self) -> usize {
        self.shards_ahead.unwrap_or(2 * self.shards_per_block.unwrap_or(REMOTE_BLOCK))
    }
}

impl SetConfig {
    fn share(&self) -> Result<Share, &'static str> {
        match (self.ratio, self.repeats) {
            (Some(ratio), None) => Ok(Share::Ratio(ratio)),
            (None, repeats) => Ok(Share::Repeats(repeats.unwrap_or(1.0))),
            (Some(_), Some(_)) => Err("has both `ratio` and `repeats`; use one of them"),
        }
    }
}
