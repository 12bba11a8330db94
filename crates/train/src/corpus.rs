//! The samples of a split that can be used: captions in memory (they are small), pictures as cached features.

use std::collections::BTreeMap;
use std::sync::Arc;

use collectives::ProcessGroup;
use data::{Captions, Counters, Index, SampleError, SkipReason};
use tch::Tensor;

use crate::agree::union;
use crate::error::TrainError;
use crate::feature_file::FeatureFile;
use crate::features::decode_sample;

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
    pub captions: Captions,
}

impl Example {
    fn new(index: &Index, sample: usize, captions: Captions) -> Self {
        Self {
            sample,
            key: index.entry(sample).key.to_string(),
            caption: data::blip_caption(&captions.captions[0], data::MAX_WORDS),
            captions,
        }
    }
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
    /// Joins captions and features; a sample that lacks either on any rank is counted and left out on all.
    ///
    /// # Errors
    /// [`data::DataError::TooManySkipped`] above `max_skipped_ratio`, naming shards and reasons; a lost peer.
    pub fn new(
        index: Arc<Index>,
        features: FeatureFile,
        transform: &data::Transform,
        group: &dyn ProcessGroup,
        max_skipped_ratio: f64,
    ) -> Result<Self, TrainError> {
        let mut captions: Vec<Option<Captions>> = Vec::with_capacity(index.len());
        let mut errors = BTreeMap::new();
        for sample in 0..index.len() {
            let found = match features.shape.lacks(sample) {
                true => Err(why_lacking(&index, sample, transform)),
                false => index.read_captions(sample),
            };
            captions.push(found.map_err(|error| errors.insert(sample, error)).ok());
        }
        let own: Vec<usize> = errors.keys().copied().collect();
        let mut skipped = index.problems().clone();
        for sample in union(group, index.len(), &own)? {
            captions[sample] = None;
            // What this rank can read and another cannot.
            let elsewhere = || index.sample_error(sample, SkipReason::Unreadable);
            skipped.add_error(&errors.remove(&sample).unwrap_or_else(elsewhere));
        }
        skipped.check(max_skipped_ratio)?;
        let examples: Vec<Example> = captions
            .into_iter()
            .enumerate()
            .filter_map(|(sample, captions)| Some(Example::new(&index, sample, captions?)))
            .collect();
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

/// The feature file knows which samples have no rows; decoding the few again tells why.
fn why_lacking(index: &Index, sample: usize, transform: &data::Transform) -> SampleError {
    match decode_sample(index, sample, transform) {
        Err(error) => error,
        // It reads well now, but did not when the features were computed.
        Ok(_) => index.sample_error(sample, SkipReason::Unreadable),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use std::path::Path;

    use collectives::{CommError, GradientReducer, ReduceOptions, SoloGroup};
    use tch::{Device, Kind};

    use super::*;
    use crate::feature_file::FeatureShape;

    /// Alone, but for a rank that cannot read one caption.
    struct Beside {
        solo: SoloGroup,
        lacks: i64,
    }

    impl ProcessGroup for Beside {
        fn rank(&self) -> usize {
            0
        }
        fn world_size(&self) -> usize {
            2
        }
        fn device(&self) -> Device {
            Device::Cpu
        }
        fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CommError> {
            let _ = tensor.get(self.lacks).fill_(1.0);
            Ok(())
        }
        fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError> {
            self.solo.all_gather(tensor)
        }
        fn beside(&self, name: &str) -> Result<Box<dyn ProcessGroup>, CommError> {
            self.solo.beside(name)
        }
        fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError> {
            self.solo.all_to_all(tensor, to, from)
        }
        fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError> {
            self.solo.broadcast(tensor, root)
        }
        fn barrier(&self) -> Result<(), CommError> {
            Ok(())
        }
        fn reducer(
            &self,
            parameters: &[Tensor],
            options: ReduceOptions,
        ) -> Result<Box<dyn GradientReducer>, CommError> {
            self.solo.reducer(parameters, options)
        }
    }

    /// Five samples, the second without a word in its caption.
    fn shard(path: &Path) {
        let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
        for (number, caption) in ["a cat", "  ", "a dog", "a cow", "a hen"].iter().enumerate() {
            for (name, bytes) in [("txt", caption.as_bytes()), ("png", b"no picture")] {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, format!("{number}.{name}"), bytes).unwrap();
            }
        }
        tar.finish().unwrap();
    }

    fn corpus(dir: &Path, group: &dyn ProcessGroup) -> Corpus {
        let path = dir.join("0.tar");
        shard(&path);
        let index = Arc::new(Index::open(&[path.display().to_string()]).unwrap());
        let shape = FeatureShape { samples: 5, views: 1, tokens: 1, width: 1, bad: vec![3], unread: vec![] };
        let features = FeatureFile::create(&dir.join("0.features"), shape).unwrap();
        let transform = data::Transform::new(data::TransformConfig::default()).unwrap();
        Corpus::new(index, features, &transform, group, 0.5).unwrap()
    }

    #[test]
    fn what_one_rank_lacks_all_ranks_leave_out_and_count() {
        let dir = tempfile::tempdir().unwrap();
        let keys = |corpus: &Corpus| corpus.examples.iter().map(|e| e.key.clone()).collect::<Vec<_>>();
        let alone = corpus(dir.path(), &SoloGroup::new(Device::Cpu));
        assert_eq!(keys(&alone), ["0", "2", "4"]);
        assert_eq!((alone.skipped.seen, alone.skipped.total()), (5, 2));
        let beside = corpus(dir.path(), &Beside { solo: SoloGroup::new(Device::Cpu), lacks: 2 });
        assert_eq!(keys(&beside), ["0", "4"]);
        let reasons = beside.skipped.by_reason();
        assert_eq!(reasons[&SkipReason::CaptionEmpty], 1);
        assert_eq!(reasons[&SkipReason::Unreadable], 1, "the other rank's");
        assert_eq!(beside.skipped.total(), 3);
        assert_eq!(beside.features(&[(1, 0)]).unwrap().kind(), Kind::Float);
    }
}
