//! n-grams of a tokenised caption.

use std::collections::BTreeMap;

/// Longest n-gram that BLEU and CIDEr look at.
pub(crate) const LONGEST: usize = 4;

/// How often each n-gram of one length occurs. Ordered, so that sums over it are the same on every run and rank.
pub(crate) type Counts<'a> = BTreeMap<&'a [String], u32>;

/// A caption's words as BLEU and CIDEr count them: a token with a blank inside is several.
pub(crate) fn words(tokens: &[String]) -> Vec<String> {
    tokens.iter().flat_map(|token| token.split('\u{a0}')).map(str::to_owned).collect()
}

/// Counts of the n-grams of 1 to [`LONGEST`] words; index 0 holds single words.
pub(crate) fn counts(words: &[String]) -> [Counts<'_>; LONGEST] {
    std::array::from_fn(|index| {
        let mut counts = Counts::new();
        for ngram in words.windows(index + 1) {
            *counts.entry(ngram).or_default() += 1;
        }
        counts
    })
}
