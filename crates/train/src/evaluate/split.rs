//! A held-out split, ready to be scored: captions tokenised, features at hand.

use data::WordPiece;
use model::TextInput;
use tch::Tensor;

use crate::corpus::Corpus;
use crate::error::TrainError;

/// One split.
pub struct Split {
    /// Its key in `eval.json`.
    pub name: String,
    /// What is unseen in it.
    pub description: String,
    /// Scores on it choose the stage-1 checkpoint, where the config wants the best one.
    pub select: bool,
    /// Left out of the report.
    pub hidden: bool,
    /// Its samples.
    pub corpus: Corpus,
    /// Places of this split's samples in the corpus (a split may be a part of its shards).
    pub members: Vec<usize>,
    tokens: data::TextBatch,
}

impl Split {
    /// Tokenises the captions of `members`, `max_text_tokens` at most.
    ///
    /// # Errors
    /// [`TrainError::Data`] for a caption that the tokenizer refuses.
    pub fn new(
        config: &crate::config::SplitConfig,
        corpus: Corpus,
        tokenizer: &WordPiece,
        max_text_tokens: usize,
    ) -> Result<Self, TrainError> {
        let members: Vec<usize> = (0..corpus.examples.len())
            .filter(|&i| {
                config.key_prefix.as_ref().is_none_or(|prefix| corpus.examples[i].key.starts_with(prefix))
            })
            .collect();
        let captions: Vec<String> = members.iter().map(|&i| corpus.examples[i].caption.clone()).collect();
        let tokens = tokenizer.encode_tight(&captions, max_text_tokens)?;
        let (name, select, hidden) = (config.name.clone(), config.select, config.hidden);
        Ok(Self { name, description: config.description.clone(), select, hidden, corpus, members, tokens })
    }

    /// Pairs in the split.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True for a split without a sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The caption of pair `i`.
    #[must_use]
    pub fn caption(&self, i: usize) -> &str {
        &self.corpus.examples[self.members[i]].caption
    }

    /// Pair numbers, `size` at a time.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = Vec<usize>> + '_ {
        (0..self.len()).step_by(size).map(move |start| (start..self.len().min(start + size)).collect())
    }

    /// Plain-view features `[B, P, V]` of some pairs.
    ///
    /// # Errors
    /// [`TrainError::Read`].
    pub fn features(&self, pairs: &[usize]) -> Result<Tensor, TrainError> {
        self.corpus.features(&pairs.iter().map(|&i| (self.members[i], 0)).collect::<Vec<_>>())
    }

    /// At most `most` pair numbers in a random order that every run shares: the split's name draws it, not the seed.
    #[must_use]
    pub fn subset(&self, most: usize) -> Vec<usize> {
        let name: Vec<u64> = self.name.bytes().map(u64::from).collect();
        let mut pairs: Vec<usize> = (0..self.len()).collect();
        data::Rng::new(0, data::Stream::Subset, &name).shuffle(&mut pairs);
        pairs.truncate(most);
        pairs
    }

    /// The encoded picture of pair `i`, as it lies in the shard.
    ///
    /// # Errors
    /// [`TrainError::Read`].
    pub fn picture(&self, i: usize) -> Result<Vec<u8>, TrainError> {
        let index = &self.corpus.index;
        let sample = self.corpus.examples[self.members[i]].sample;
        index.read_image(sample).map_err(|error| TrainError::Read {
            path: index.shard(index.entry(sample).shard).to_string().into(),
            source: std::io::Error::other(error.to_string()),
        })
    }

    /// All captions, tokenised.
    #[must_use]
    pub fn texts(&self) -> TextInput {
        self.texts_of(&(0..self.len()).collect::<Vec<_>>())
    }

    /// Some captions, tokenised and no wider than the longest of them.
    #[must_use]
    pub fn texts_of(&self, pairs: &[usize]) -> TextInput {
        crate::texts::text_input(&self.tokens, pairs)
    }
}
