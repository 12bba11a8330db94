//! Which concept a caption is about, and the split that follows from it.
//!
//! Both rules are fixed: `tests/golden/quickstart/items.jsonl` holds their result for every emoji, and published
//! figures are on exactly those splits.

use md5::{Digest, Md5};

const ARTICLES: [&str; 3] = ["a", "an", "the"];
const PEOPLE: [&str; 8] = ["man", "woman", "men", "women", "person", "people", "boy", "girl"];
/// Taken out of a family: full stops, exclamation marks, quotes.
const REMOVED: [char; 7] = ['.', '!', '"', '\'', '“', '”', '‘'];

/// Where the samples of one family go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Train,
    /// Looked at while training.
    Val,
    /// A concept that training never saw.
    Test,
}

impl Split {
    /// MD5 of the family as a number, modulo 100: below 10 test, below 15 val, else train.
    pub fn of(family: &str) -> Self {
        let digest = Md5::digest(family.as_bytes());
        match digest.iter().fold(0_u32, |rest, byte| (rest * 256 + u32::from(*byte)) % 100) {
            0..10 => Self::Test,
            10..15 => Self::Val,
            _ => Self::Train,
        }
    }
}

/// The concept of a caption: lower case; a leading article off, then a leading person word; parentheses, [`REMOVED`],
/// a trailing number off; plural s off words longer than 3 letters unless they end in ss; `person` when nothing is
/// left.
pub fn family(caption: &str) -> String {
    let lower = caption.to_lowercase();
    let rest = without_first_word(lower.trim(), &ARTICLES);
    let rest = without_first_word(rest, &PEOPLE);
    let text: String = without_parentheses(rest).chars().filter(|char| !REMOVED.contains(char)).collect();
    let text = text.trim().trim_end_matches(|char: char| char.is_ascii_digit());
    let words: Vec<&str> = text.split_whitespace().map(singular).collect();
    if words.is_empty() { "person".to_owned() } else { words.join(" ") }
}

/// `text` without its first word when that is one of `words`; a word ends where no letter or digit follows.
fn without_first_word<'a>(text: &'a str, words: &[&str]) -> &'a str {
    let end = text.find(|char: char| !char.is_alphanumeric()).unwrap_or(text.len());
    if words.contains(&&text[..end]) { text[end..].trim_start_matches([' ', ':']) } else { text }
}

/// `text` without `(...)`.
fn without_parentheses(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('(') {
        let Some(close) = rest[open..].find(')') else { break };
        kept.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    kept + rest
}

fn singular(word: &str) -> &str {
    match word.strip_suffix('s') {
        Some(stem) if word.chars().count() > 3 && !stem.ends_with('s') => stem,
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rule_gives_every_line_of_the_fixture() {
        let text = include_str!("../../../../tests/golden/quickstart/items.jsonl");
        let mut lines = 0;
        for line in text.lines() {
            let item: crate::prepare::Item = serde_json::from_str(line).unwrap();
            assert_eq!(family(&item.caption), item.family, "{}", item.caption);
            assert_eq!(Split::of(&item.family), item.split, "{}", item.family);
            lines += 1;
        }
        assert_eq!(lines, 1599);
    }

    #[test]
    fn words_are_cut_only_where_the_rule_says() {
        for (caption, expected) in [
            ("A Tamworth pig.", "tamworth pig"),
            ("The man", "person"),
            ("manual", "manual"),
            ("tall glass of buses", "tall glass of buse"),
            ("bus (red) 12", "bus"),
            ("broken (paren", "broken (paren"),
            ("", "person"),
        ] {
            assert_eq!(family(caption), expected, "{caption}");
        }
    }

    proptest! {
        #[test]
        fn no_caption_breaks_the_rule(caption in "\\PC{0,60}") {
            prop_assert!(!family(&caption).is_empty());
        }

        #[test]
        fn case_and_article_make_no_concept(noun in "[b-z]{5,9}") {
            prop_assert_eq!(family(&format!("The {}", noun.to_uppercase())), family(&noun));
        }
    }
}
