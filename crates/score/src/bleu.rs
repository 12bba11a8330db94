//! Corpus BLEU (Papineni et al., ACL 2002) as pycocoevalcap computes it: "closest" reference length, no smoothing but
//! two small constants that keep zero counts from dividing.

use crate::ngram::{Counts, LONGEST, counts, words};
use crate::tokenize::Tokens;

/// Added to denominators.
const SMALL: f64 = 1e-9;
/// Added to numerators, so that nothing guessed and nothing right gives 0.
const TINY: f64 = 1e-15;

/// BLEU-1 to BLEU-4.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bleu {
    /// Of the corpus: counts are summed over captions before they are divided. 0 to 1.
    pub corpus: [f64; LONGEST],
    /// Of each caption on its own.
    pub per_caption: Vec<[f64; LONGEST]>,
}

/// What one caption, or the whole corpus, adds up to.
#[derive(Clone, Copy, Default)]
struct Matches {
    correct: [u32; LONGEST],
    guessed: [u32; LONGEST],
    words: usize,
    reference_words: usize,
}

/// BLEU of `candidates[i]` against `references[i]`.
///
/// # Panics
/// When the two slices differ in length, or a candidate has no reference.
pub fn bleu(references: &[Vec<Tokens>], candidates: &[Tokens]) -> Bleu {
    assert_eq!(references.len(), candidates.len(), "one list of references for each candidate");
    let mut total = Matches::default();
    let mut per_caption = Vec::with_capacity(candidates.len());
    for (references, candidate) in references.iter().zip(candidates) {
        let matches = Matches::of(references, candidate);
        total.add(&matches);
        per_caption.push(matches.scores());
    }
    let corpus = if candidates.is_empty() { [0.0; LONGEST] } else { total.scores() };
    Bleu { corpus, per_caption }
}

impl Matches {
    fn of(references: &[Tokens], candidate: &Tokens) -> Self {
        let references: Vec<Vec<String>> = references.iter().map(|reference| words(reference)).collect();
        let candidate = words(candidate);
        let reference_counts: Vec<[Counts; LONGEST]> =
            references.iter().map(|reference| counts(reference)).collect();
        let mut matches = Self { words: candidate.len(), ..Self::default() };
        for (index, ngrams) in counts(&candidate).iter().enumerate() {
            matches.guessed[index] = ngrams.values().sum();
            for (ngram, count) in ngrams {
                let in_reference = |of: &[Counts; LONGEST]| of[index].get(ngram).copied().unwrap_or(0);
                let most = reference_counts.iter().map(in_reference).max().unwrap_or(0);
                matches.correct[index] += most.min(*count);
            }
        }
        let lengths = references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|&length| (length.abs_diff(candidate.len()), length));
        matches.reference_words = closest.expect("every candidate has a reference");
        matches
    }

    fn add(&mut self, other: &Self) {
        for index in 0..LONGEST {
            self.correct[index] += other.correct[index];
            self.guessed[index] += other.guessed[index];
        }
        self.words += other.words;
        self.reference_words += other.reference_words;
    }

    /// Geometric means of the precisions, times the penalty for captions that are too short.
    fn scores(&self) -> [f64; LONGEST] {
        let ratio = (self.words as f64 + TINY) / (self.reference_words as f64 + SMALL);
        let penalty = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|index| {
            product *= (f64::from(self.correct[index]) + TINY) / (f64::from(self.guessed[index]) + SMALL);
            product.powf(1.0 / (index + 1) as f64) * penalty
        })
    }
}
