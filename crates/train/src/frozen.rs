//! What must not change while a phase trains, and what its checkpoints tell of it.

use std::collections::BTreeMap;

use checkpoint::Loaded;

use crate::error::TrainError;

/// What a phase's snapshots tell of where they come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The resolved config.
    pub config: String,
    /// The checkpoint that the phase starts from, as `PHASE/FOLDER`.
    pub parent: Option<String>,
    /// Digests of what must not change while the phase trains, by [`Frozen::name`].
    pub frozen: BTreeMap<String, String>,
}

/// What must not change while a phase trains: another model or another order of samples would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// Weights of the image encoder.
    Vision,
    /// Weights of the language model.
    Language,
    /// Keys, sizes and places of the training samples.
    Data,
    /// Vocabulary of stage 1.
    Words,
    /// Tokenizer of stage 2.
    Tokens,
}

impl Frozen {
    const ALL: [Self; 5] = [Self::Vision, Self::Language, Self::Data, Self::Words, Self::Tokens];

    /// Its key in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Language => "language",
            Self::Data => "data",
            Self::Words => "words",
            Self::Tokens => "tokens",
        }
    }

    /// Where a config names it.
    const fn place(self) -> &'static str {
        match self {
            Self::Vision => "the weights in model.vision.weights",
            Self::Language => "the weights in model.language.weights",
            Self::Data => "the shards in data.train",
            Self::Words => "vocab.txt in model.qformer.init",
            Self::Tokens => "tokenizer.json in model.language.weights",
        }
    }
}

/// Whether two digests are of different things. Those of two kinds tell nothing of one another: checkpoints of blip2's first
/// builds hold digests of weight files, not of the tensors in them.
#[must_use]
pub fn differ(then: &str, now: &str) -> bool {
    let kind = |digest: &str| digest.split_once(':').map(|(kind, _)| kind.to_owned());
    kind(then) == kind(now) && then != now
}

impl Origin {
    /// What is frozen is still what `loaded` was trained beside.
    ///
    /// # Errors
    /// [`TrainError::Weights`] naming what has changed.
    pub fn check(&self, loaded: &Loaded) -> Result<(), TrainError> {
        let then = &loaded.snapshot.frozen;
        let differs = |what: &Frozen| match (then.get(what.name()), self.frozen.get(what.name())) {
            (Some(then), Some(now)) => differ(then, now),
            _ => false,
        };
        let others: Vec<&str> = Frozen::ALL.into_iter().filter(differs).map(Frozen::place).collect();
        if others.is_empty() {
            return Ok(());
        }
        let detail = format!(
            "since it was written there has been a change of {}; undo it, or use another run.dir",
            others.join(" and ")
        );
        Err(TrainError::Weights { path: loaded.path.clone(), detail })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use std::path::PathBuf;

    use checkpoint::Snapshot;

    use super::*;

    #[test]
    fn other_frozen_weights_are_refused_by_name() {
        let beside = |digest: &str| BTreeMap::from([("vision".to_owned(), digest.to_owned())]);
        let snapshot = Snapshot { frozen: beside("digest"), ..Snapshot::default() };
        let loaded = Loaded { step: 2, path: PathBuf::from("step-2"), snapshot, warnings: Vec::new() };
        let now = |digest: &str| Origin { frozen: beside(digest), ..Origin::default() };
        now("digest").check(&loaded).unwrap();
        let refused = now("other").check(&loaded).unwrap_err();
        assert_eq!(refused.exit(), launch::Exit::Config);
        assert!(refused.to_string().contains("the weights in model.vision.weights"), "{refused}");
        now("tensors:digest").check(&loaded).unwrap();
    }
}
