//! Texts: LAVIS's processors for captions and questions, and what text a picture is trained on.

use crate::error::DataError;
use crate::rng::{Rng, Stream};
use crate::sample::Captions;

/// LAVIS's `max_words`.
pub const MAX_WORDS: usize = 50;

/// Characters the processors take out.
const REMOVED: [char; 10] = ['.', '!', '"', '(', ')', '*', '#', ':', ';', '~'];

/// LAVIS's `blip_caption`: lower case, [`REMOVED`] to spaces, runs of white space to one space, trailing newlines
/// then spaces at both ends off, at most `max_words` words. A single tab or newline inside stays.
pub fn blip_caption(caption: &str, max_words: usize) -> String {
    let spaced: String =
        caption.to_lowercase().chars().map(|char| if REMOVED.contains(&char) { ' ' } else { char }).collect();
    let collapsed = collapse_spaces(&spaced);
    first_words(collapsed.trim_end_matches('\n').trim_matches(' '), max_words)
}

/// LAVIS's `blip_question`: lower case, [`REMOVED`] deleted, spaces at the right end off, at most `max_words` words.
pub fn blip_question(question: &str, max_words: usize) -> String {
    let kept: String = question.to_lowercase().chars().filter(|char| !REMOVED.contains(char)).collect();
    first_words(kept.trim_end_matches(' '), max_words)
}

/// Python's `\s`: Unicode white space and the four separators of ASCII.
fn is_python_space(char: char) -> bool {
    char.is_whitespace() || ('\x1c'..='\x1f').contains(&char)
}

/// `re.sub(r"\s{2,}", " ", text)`.
fn collapse_spaces(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let mut run = 1;
        while is_python_space(char) && chars.next_if(|next| is_python_space(*next)).is_some() {
            run += 1;
        }
        collapsed.push(if run > 1 { ' ' } else { char });
    }
    collapsed
}

/// Words are what single spaces separate, so an empty one counts.
fn first_words(text: &str, max_words: usize) -> String {
    text.split(' ').take(max_words).collect::<Vec<_>>().join(" ")
}

/// What text a picture is trained on. Evaluation always uses the label: the first caption.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPolicy {
    /// A caption; one of them at random when there are several.
    #[default]
    Label,
    /// Caption, caption and tags, or tags alone.
    Mixture(Mixture),
}

/// Weights of the three kinds of text; they need not sum to 1. A sample without tags gives its caption.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixture {
    /// Weight of the caption alone.
    pub label: f64,
    /// Weight of the caption followed by one to `max_tags` tags.
    pub label_and_tags: f64,
    /// Weight of one to `max_tags` tags alone.
    pub tags: f64,
    /// The most tags in one text.
    pub max_tags: usize,
}

impl Default for Mixture {
    fn default() -> Self {
        Self { label: 0.4, label_and_tags: 0.4, tags: 0.2, max_tags: 3 }
    }
}

impl TextPolicy {
    /// Refuses weights that are negative or all zero.
    pub fn check(&self) -> Result<(), DataError> {
        let Self::Mixture(mixture) = self else { return Ok(()) };
        let weights = [mixture.label, mixture.label_and_tags, mixture.tags];
        let usable = weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite());
        if !usable || weights.iter().sum::<f64>() <= 0.0 || mixture.max_tags == 0 {
            let problem = "weights must not be negative nor all zero, max_tags at least 1".to_owned();
            return Err(DataError::Config { key: "data.texts.mixture".into(), problem });
        }
        Ok(())
    }

    /// The text of a sample in an epoch, before any processor: a pure function of (seed, sample, epoch).
    ///
    /// Parts are joined by `", "`; tags are drawn without repeats, in drawn order. Empty only when `of` holds no
    /// caption, which no [`crate::Sample`] does.
    pub fn draw(&self, of: &Captions, seed: u64, sample: u64, epoch: u64) -> String {
        let mut rng = Rng::new(seed, Stream::Caption, &[sample, epoch]);
        let label = of.captions.get(rng.below(of.captions.len() as u64) as usize).map_or("", String::as_str);
        let Self::Mixture(mixture) = self else { return label.to_owned() };
        if of.tags.is_empty() {
            return label.to_owned();
        }
        let point = rng.uniform() * (mixture.label + mixture.label_and_tags + mixture.tags);
        if point < mixture.label {
            return label.to_owned();
        }
        let mut parts = if point < mixture.label + mixture.label_and_tags { vec![label] } else { vec![] };
        let mut tags: Vec<&str> = of.tags.iter().map(String::as_str).collect();
        rng.shuffle(&mut tags);
        let most = mixture.max_tags.min(tags.len());
        parts.extend(&tags[..1 + rng.below(most as u64) as usize]);
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(blip_caption("a\x1c\x1db\tc\n\n", 50), "a b\tc");
        assert_eq!(blip_caption("ΣΑΣ", 50), "σας");
        assert_eq!(blip_caption(&"w ".repeat(60), 50).split(' ').count(), 50);
        assert_eq!(blip_question(" What (is)  it?  ", 50), " what is  it?");
    }

    #[test]
    fn a_mixture_draws_all_kinds_by_weight() {
        let of = Captions {
            captions: vec!["label".into()],
            tags: ["x", "y", "z", "u", "v"].map(str::to_owned).to_vec(),
            ..Captions::default()
        };
        let policy = TextPolicy::Mixture(Mixture::default());
        policy.check().unwrap();
        let texts: Vec<String> = (0..10_000).map(|sample| policy.draw(&of, 7, sample, 0)).collect();
        let labels = texts.iter().filter(|text| *text == "label").count();
        let tags = texts.iter().filter(|text| !text.starts_with("label")).count();
        assert!(labels.abs_diff(4000) < 250 && tags.abs_diff(2000) < 250, "{labels} {tags}");
        assert!(texts.iter().all(|text| text.split(", ").count() <= 4));
        assert_eq!(texts[5], policy.draw(&of, 7, 5, 0));
        assert_eq!(TextPolicy::Label.draw(&of, 7, 5, 0), "label");
        let none = TextPolicy::Mixture(Mixture { label: 0.0, label_and_tags: 0.0, tags: 0.0, max_tags: 1 });
        assert!(none.check().is_err());
    }

    #[test]
    fn the_policy_reads_as_a_word_or_a_table() {
        let word: TextPolicy = serde_json::from_str(r#""label""#).unwrap();
        assert_eq!(word, TextPolicy::Label);
        let table: TextPolicy = serde_json::from_str(r#"{"mixture": {"tags": 0.5}}"#).unwrap();
        assert_eq!(table, TextPolicy::Mixture(Mixture { tags: 0.5, ..Mixture::default() }));
        assert!(serde_json::from_str::<TextPolicy>(r#"{"mixture": {"tag": 0.5}}"#).is_err());
    }

    proptest! {
        #[test]
        fn processed_captions_stay_as_they_are(text in "\\PC{0,80}") {
            let once = blip_caption(&text, MAX_WORDS);
            prop_assert_eq!(blip_caption(&once, MAX_WORDS), once.clone());
            prop_assert!(!once.contains(REMOVED) && !once.contains("  "));
        }

        #[test]
        fn drawn_texts_hold_only_given_parts(tags in prop::collection::vec("[a-z]{1,5}", 0..6), sample: u64, epoch: u64) {
            let of = Captions { captions: vec!["one".into(), "two".into()], tags: tags.clone(), image_id: None };
            let text = TextPolicy::Mixture(Mixture::default()).draw(&of, 1, sample, epoch);
            prop_assert!(text.split(", ").all(|part| part == "one" || part == "two" || tags.iter().any(|tag| tag == part)));
        }
    }
}
