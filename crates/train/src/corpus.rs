//! The samples of a split that can be used: captions in memory (they are small), pictures as cached features.

use std::sync::Arc;

use data::{Counters, Index};
use tch::Tensor;

use crate::error::TrainError;
use crate::feature_file::FeatureFile;

/// One usable sample.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its number in the index, and its row in the feature file.
    pub sample: usize,
    /// Its key in the shard.
    pub key: String,
    /// The first caption.
    pub caption: String,
    /// Captions and tags, for the text policy.
    pub captions: data::Captions,
}

/// The usable samples of one set of shards.
#[derive(Debug)]
pub struct Corpus {
    /// The shards' index.
    pub index: Arc<Index>,
    /// Usable samples, in index order.
    pub examples: Vec<Example>,
    /// Samples left out, by shard and reason.
    pub skipped: Counters,
    features: FeatureFile,
}

impl Corpus {
    /// Joins captions and features; a sample that lacks either is counted and left out.
    ///
    /// # Errors
    /// [`data::DataError::TooManySkipped`] above `max_skipped_ratio`, naming shards and reasons.
    pub fn new(
        index: Arc<Index>,
        features: FeatureFile,
        transform: &data::Transform,
        max_skipped_ratio: f64,
    ) -> Result<Self, TrainError> {
        let mut examples = Vec::with_capacity(index.len());
        let mut skipped = index.problems().clone();
        skipped.seen += index.len() as u64;
        for sample in 0..index.len() {
            if features.shape.bad.binary_search(&sample).is_ok() {
                // The feature file knows which; decoding the few again tells why.
                if let Err(error) = crate::features::decode_sample(&index, sample, transform) {
                    skipped.add_error(&error);
                }
                continue;
            }
            match index.read_captions(sample) {
                Ok(captions) => examples.push(Example {
                    sample,
                    key: index.entries()[sample].key.to_string(),
                    caption: data::blip_caption(&captions.captions[0], data::MAX_WORDS),
                    captions,
                }),
                Err(error) => skipped.add_error(&error),
            }
        }
        skipped.check(max_skipped_ratio)?;
        if examples.is_empty() {
            return Err(skipped.too_many(max_skipped_ratio).into());
        }
        Ok(Self { index, examples, skipped, features })
    }

    /// Views of each sample; view 0 is the plain one.
    #[must_use]
    pub fn views(&self) -> usize {
        self.features.shape.views
    }

    /// Features `[B, P, V]` (fp32, CPU) of `(example, view)` rows.
    ///
    /// # Errors
    /// [`TrainError::Read`].
    pub fn features(&self, rows: &[(usize, usize)]) -> Result<Tensor, TrainError> {
        let rows: Vec<(usize, usize)> =
            rows.iter().map(|&(example, view)| (self.examples[example].sample, view)).collect();
        self.features.read(&rows)
    }
}
