//! The part of a config that says where a stream's samples come from, and in which order.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::DataError;
use crate::index::Index;
use crate::location::redacted;
use crate::mixture::{MixtureSet, Unit};
use crate::order::Order;
use crate::pattern;
use crate::remote::RemoteOptions;
use crate::share::{self, Share, wrong};

/// Where copies of remote shards go unless a config says it.
pub const SHARD_CACHE: &str = "data/shard_cache";

/// Shards of a block where none is given and shards are remote.
const REMOTE_BLOCK: usize = 16;

/// Longest time that may be waited for a shard: a year. Clocks cannot add any number of seconds.
const MAX_SECONDS: u64 = 365 * 24 * 3600;
/// 8 EiB: what the copies take is counted in bytes.
const MAX_GIB: u64 = 1 << 33;

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

    fn problems(&self) -> Vec<DataError> {
        let seconds = 1..=MAX_SECONDS;
        let rules = [
            ((1..=MAX_GIB).contains(&self.max_gib), "max_gib", "must be 1 to 8589934592"),
            (
                seconds.contains(&self.shard_deadline_seconds),
                "shard_deadline_seconds",
                "must be 1 to 31536000, which is a year",
            ),
            (
                seconds.contains(&self.stall_seconds),
                "stall_seconds",
                "must be 1 to 31536000, which is a year",
            ),
            (self.attempts > 0, "attempts", "must be at least 1"),
        ];
        let broken = rules.into_iter().filter(|(holds, ..)| !holds);
        broken.map(|(_, key, problem)| wrong_key(&format!("cache.{key}"), problem)).collect()
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
    /// All that is wrong with the values, whatever the shards hold; each error names its key. The disk is not looked at:
    /// sets that share shards by a wildcard, a folder or a list file are not found.
    pub fn problems(&self) -> Vec<DataError> {
        let mut problems = self.cache.problems();
        problems.extend(self.per_block().err());
        let mut shares = Vec::with_capacity(self.sets.len());
        for (number, set) in self.sets.iter().enumerate() {
            if set.shards.is_empty() {
                problems.push(wrong(number, "names no shards; give it some, or leave the set out"));
            }
            match set.share() {
                Ok(share) => shares.push((number, share)),
                Err(problem) => problems.push(wrong(number, problem)),
            }
        }
        problems.extend(share::problems(&shares));
        problems.extend(self.shards_of_two_sets());
        problems
    }

    /// For each set that names a shard of an earlier one, the first such shard.
    fn shards_of_two_sets(&self) -> Vec<DataError> {
        let mut owner: HashMap<String, usize> = HashMap::new();
        let mut problems = Vec::new();
        for (number, set) in self.sets.iter().enumerate() {
            // What cannot be expanded is refused with its reason by whoever opens it.
            let names = set.shards.iter().filter_map(|pattern| pattern::expand(pattern).ok()).flatten();
            let mut twice = None;
            for name in names {
                let first = *owner.entry(name.clone()).or_insert(number);
                if first != number && twice.is_none() {
                    twice = Some((name, first));
                }
            }
            problems.extend(twice.map(|(name, first)| {
                let shard = redacted(&name);
                wrong(number, &format!("{shard} is in sets[{first}] too; leave it out of one, and say by `ratio` or `repeats` how often a set is seen"))
            }));
        }
        problems
    }

    fn per_block(&self) -> Result<usize, DataError> {
        match self.shards_per_block.unwrap_or(REMOTE_BLOCK) {
            0 => Err(wrong_key("shards_per_block", "must not be 0")),
            shards => Ok(shards),
        }
    }

    /// The index of all sets, or of `shards` where no sets are given.
    ///
    /// Errors: as [`Index::open_sets`], and both `shards` and `sets`, or neither.
    pub fn open(&self, shards: &[String]) -> Result<Index, DataError> {
        let wrong = |problem| wrong_key("sets", problem);
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
        countable(index.len())?;
        let per_block = self.per_block()?;
        if self.sets.is_empty() {
            return Ok(match self.shards_per_block {
                None if !index.is_remote() => Order::new(seed, index.len()),
                _ => Order::in_blocks(seed, &index.shard_sizes(0), per_block),
            });
        }
        let mut sets = Vec::with_capacity(self.sets.len());
        for (number, set) in self.sets.iter().enumerate() {
            let share = set.share().map_err(|problem| wrong(number, problem))?;
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

/// Orders hold the numbers of samples in 32 bits.
fn countable(samples: usize) -> Result<(), DataError> {
    match u32::try_from(samples) {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(wrong_key("sets", &format!("{samples} samples are more than an order holds, {}", u32::MAX)))
        }
    }
}

fn wrong_key(key: &str, problem: &str) -> DataError {
    DataError::Config { key: format!("data.source.{key}"), problem: problem.to_owned() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_samples_than_an_order_can_hold_are_refused() {
        countable(u32::MAX as usize).unwrap();
        let message = countable(1 << 32).unwrap_err().to_string();
        assert!(message.contains("4294967296 samples"), "{message}");
    }
}
