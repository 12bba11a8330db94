//! A caption in two parts for an encoder-decoder: the first is read, the second is to be said (paper section 3.3).

use crate::error::DataError;
use crate::lm_tokenizer::LmTokenizer;
use crate::rng::Rng;

/// Between what a caption is split. The paper does not say; the maintainer (LAVIS issue 139) says that the place is drawn
/// uniformly between the first position and the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixSplit {
    /// Between words: what single spaces separate.
    #[default]
    Words,
    /// Between the tokenizer's pieces, which may be parts of words.
    Tokens,
}

/// Ids of the two parts of a caption, without an end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TwoParts {
    /// What the encoder reads; empty for a caption of one word or token.
    pub prefix: Vec<i64>,
    /// What the decoder is to say.
    pub suffix: Vec<i64>,
}

impl PrefixSplit {
    /// Splits `caption` at the place that `rng` draws.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] for a text that the tokenizer refuses.
    pub fn split(self, caption: &str, tokenizer: &LmTokenizer, rng: &mut Rng) -> Result<TwoParts, DataError> {
        match self {
            Self::Words => {
                let (prefix, suffix) = split_words(caption, rng);
                Ok(TwoParts {
                    prefix: tokenizer.encode_plain(prefix)?,
                    suffix: tokenizer.encode_plain(suffix)?,
                })
            }
            Self::Tokens => {
                let mut prefix = tokenizer.encode_plain(caption)?;
                let suffix = prefix.split_off(prefix_length(prefix.len(), rng));
                Ok(TwoParts { prefix, suffix })
            }
        }
    }
}

/// How many of `count` words or tokens are read: 1 to `count / 2`, each as likely; of a single one none, for the decoder is
/// to have something to say.
fn prefix_length(count: usize, rng: &mut Rng) -> usize {
    match count / 2 {
        0 => 0,
        middle => 1 + rng.below(middle as u64) as usize,
    }
}

/// The space between the parts belongs to neither.
fn split_words<'a>(caption: &'a str, rng: &mut Rng) -> (&'a str, &'a str) {
    let spaces: Vec<usize> = caption.match_indices(' ').map(|(place, _)| place).collect();
    match prefix_length(spaces.len() + 1, rng) {
        0 => ("", caption),
        words => (&caption[..spaces[words - 1]], &caption[spaces[words - 1] + 1..]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::rng::{Rng, Stream};

    /// One token a letter.
    const LETTERS: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": [],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false },
        "model": { "type": "WordLevel", "vocab": {"?": 0, "a": 1, "b": 2, "c": 3, "d": 4, " ": 5}, "unk_token": "?" }
    }"#;

    fn letters() -> LmTokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, LETTERS).unwrap();
        LmTokenizer::from_folder(dir.path()).unwrap()
    }

    fn rng(position: u64) -> Rng {
        Rng::new(7, Stream::PrefixSplit, &[position])
    }

    #[test]
    fn every_place_up_to_the_middle_is_drawn_as_often_as_another() {
        for (count, middle) in [(2, 1), (3, 1), (8, 4), (9, 4)] {
            let mut drawn = vec![0u32; count];
            (0..8_000).for_each(|position| drawn[prefix_length(count, &mut rng(position))] += 1);
            let expected = 8_000 / middle as u32;
            assert!(
                drawn[1..=middle].iter().all(|times| times.abs_diff(expected) < 250),
                "{count}: {drawn:?}"
            );
            assert_eq!(
                drawn.iter().sum::<u32>(),
                drawn[1..=middle].iter().sum::<u32>(),
                "{count}: {drawn:?}"
            );
        }
    }

    #[test]
    fn one_word_is_said_and_not_read() {
        assert_eq!(split_words("cat", &mut rng(0)), ("", "cat"));
        assert_eq!(split_words("", &mut rng(0)), ("", ""));
        assert_eq!(split_words("red cat", &mut rng(0)), ("red", "cat"));
        for kind in [PrefixSplit::Words, PrefixSplit::Tokens] {
            let parts = kind.split("a", &letters(), &mut rng(0)).unwrap();
            assert_eq!(parts, TwoParts { prefix: vec![], suffix: vec![1] }, "{kind:?}");
        }
    }

    #[test]
    fn words_stay_whole_and_tokens_do_not() {
        let ids = |text: &str| letters().encode_plain(text).unwrap();
        let caption = "ab cd abcd";
        for position in 0..64 {
            let words = PrefixSplit::Words.split(caption, &letters(), &mut rng(position)).unwrap();
            assert_eq!(words, TwoParts { prefix: ids("ab"), suffix: ids("cd abcd") });
            let tokens = PrefixSplit::Tokens.split(caption, &letters(), &mut rng(position)).unwrap();
            assert_eq!([tokens.prefix.clone(), tokens.suffix].concat(), ids(caption));
            assert!((1..=5).contains(&tokens.prefix.len()));
        }
        let lengths: std::collections::BTreeSet<usize> = (0..64)
            .map(|position| PrefixSplit::Tokens.split(caption, &letters(), &mut rng(position)).unwrap())
            .map(|parts| parts.prefix.len())
            .collect();
        assert_eq!(lengths.len(), 5, "{lengths:?}");
    }

    #[test]
    fn the_config_has_a_word_for_each_kind() {
        assert_eq!(serde_json::from_str::<PrefixSplit>(r#""words""#).unwrap(), PrefixSplit::Words);
        assert_eq!(serde_json::from_str::<PrefixSplit>(r#""tokens""#).unwrap(), PrefixSplit::Tokens);
        assert!(serde_json::from_str::<PrefixSplit>(r#""sentences""#).is_err());
    }

    proptest! {
        #[test]
        fn the_parts_make_up_the_caption_and_the_same_draw_gives_the_same_parts(
            words in prop::collection::vec("[a-zß-ü]{1,6}", 1..60), seed: u64, position: u64,
        ) {
            let caption = words.join(" ");
            let draw = || Rng::new(seed, Stream::PrefixSplit, &[position]);
            let (prefix, suffix) = split_words(&caption, &mut draw());
            prop_assert_eq!((prefix, suffix), split_words(&caption, &mut draw()));
            let count = |text: &str| text.split(' ').filter(|word| !word.is_empty()).count();
            prop_assert_eq!(count(prefix) + count(suffix), words.len());
            prop_assert!(count(prefix) <= words.len() / 2 && count(prefix) >= usize::from(words.len() > 1));
            let joined = if prefix.is_empty() { suffix.to_owned() } else { format!("{prefix} {suffix}") };
            prop_assert_eq!(joined, caption);
        }

        #[test]
        fn any_text_is_split_without_a_panic(caption in "\\PC{0,40}| {0,5}", position: u64) {
            let (prefix, suffix) = split_words(&caption, &mut rng(position));
            prop_assert!(prefix.len() + suffix.len() <= caption.len());
        }
    }
}
