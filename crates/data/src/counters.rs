//! What was skipped, by shard and reason, and the policy that ends a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{DataError, SampleError, SkipReason};

/// Below this many samples the ratio says nothing; the policy waits.
pub const MIN_SEEN: u64 = 200;

/// Counts of skipped samples by shard and reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Counters {
    /// Samples of the order looked at, good and bad; those that stand in for bad ones are not counted.
    pub seen: u64,
    /// Skips by (shard, reason).
    #[serde(with = "places")]
    pub skipped: BTreeMap<(Arc<str>, SkipReason), u64>,
}

impl Counters {
    /// Counts one skip of `shard` for `reason`.
    pub fn add(&mut self, shard: &Arc<str>, reason: SkipReason) {
        *self.skipped.entry((Arc::clone(shard), reason)).or_default() += 1;
    }

    /// Counts one bad sample.
    pub fn add_error(&mut self, error: &SampleError) {
        self.add(&error.shard, error.reason);
    }

    /// Adds another set of counts to this one.
    pub fn merge(&mut self, other: &Self) {
        self.seen += other.seen;
        for (place, count) in &other.skipped {
            *self.skipped.entry(place.clone()).or_default() += count;
        }
    }

    /// All skips.
    pub fn total(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Skips by reason over all shards.
    pub fn by_reason(&self) -> BTreeMap<SkipReason, u64> {
        let mut reasons = BTreeMap::new();
        for ((_, reason), count) in &self.skipped {
            *reasons.entry(*reason).or_default() += count;
        }
        reasons
    }

    /// The `most` worst places as `shard: reason n, reason n; ...`.
    pub fn worst(&self, most: usize) -> String {
        let mut shards: BTreeMap<&str, (u64, Vec<String>)> = BTreeMap::new();
        for ((shard, reason), count) in &self.skipped {
            let place = shards.entry(shard).or_default();
            place.0 += count;
            place.1.push(format!("{reason} {count}"));
        }
        let mut shards: Vec<_> = shards.into_iter().collect();
        shards.sort_by_key(|(shard, (count, _))| (std::cmp::Reverse(*count), *shard));
        let places: Vec<String> = shards
            .iter()
            .take(most)
            .map(|(shard, (_, reasons))| format!("{shard}: {}", reasons.join(", ")))
            .collect();
        places.join("; ")
    }

    /// The policy at the end of the chain: more than `limit` of the samples seen were bad.
    ///
    /// The ratio is taken over at least [`MIN_SEEN`] samples, so that one bad sample at the start ends nothing.
    pub fn check(&self, limit: f64) -> Result<(), DataError> {
        let skipped = self.total();
        if skipped as f64 > limit * self.seen.max(MIN_SEEN) as f64 {
            return Err(self.too_many(limit));
        }
        Ok(())
    }

    /// The error of [`Counters::check`], for callers that know that no good sample is left.
    pub fn too_many(&self, limit: f64) -> DataError {
        DataError::TooManySkipped { skipped: self.total(), seen: self.seen, limit, worst: self.worst(5) }
    }
}

/// A list of (shard, reason, count): JSON has no keys of two parts.
mod places {
    use super::{Arc, BTreeMap, SkipReason};
    use serde::{Deserialize, Deserializer, Serializer};

    type Places = BTreeMap<(Arc<str>, SkipReason), u64>;

    pub fn serialize<S: Serializer>(places: &Places, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(places.iter().map(|((shard, reason), count)| (&**shard, reason, count)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Places, D::Error> {
        let places = Vec::<(String, SkipReason, u64)>::deserialize(deserializer)?;
        Ok(places.into_iter().map(|(shard, reason, count)| ((shard.into(), reason), count)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_out_of_json() {
        let mut counters = Counters { seen: 7, ..Counters::default() };
        counters.add(&"a.tar".into(), SkipReason::CaptionEmpty);
        counters.add(&"b.tar".into(), SkipReason::CaptionEmpty);
        let text = serde_json::to_string(&counters).unwrap();
        assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
        assert!(text.contains(r#"["b.tar","caption_empty",1]"#), "{text}");
    }

    #[test]
    fn one_bad_sample_at_the_start_ends_nothing_and_many_name_their_shard() {
        let shard: Arc<str> = "a.tar".into();
        let mut counters = Counters { seen: 1, ..Counters::default() };
        counters.add(&shard, SkipReason::ImageCorrupt);
        counters.check(0.01).unwrap();
        for _ in 0..10 {
            counters.add(&shard, SkipReason::CaptionEmpty);
        }
        counters.seen = 300;
        let message = counters.check(0.01).unwrap_err().to_string();
        assert!(message.contains("a.tar: caption_empty 10, image_corrupt 1"), "{message}");
        counters.seen = 1100;
        counters.check(0.01).unwrap();
    }

    #[test]
    fn merging_adds() {
        let shard: Arc<str> = "a.tar".into();
        let mut left = Counters { seen: 3, ..Counters::default() };
        left.add(&shard, SkipReason::ImageCorrupt);
        let mut right = left.clone();
        right.merge(&left);
        assert_eq!((right.seen, right.total()), (6, 2));
        assert_eq!(right.by_reason()[&SkipReason::ImageCorrupt], 2);
    }
}
