//! All caption figures of a split at once.

use std::collections::BTreeSet;

use crate::bleu::bleu;
use crate::cider::cider;
use crate::rouge::rouge_l;
use crate::tokenize::{Tokens, tokenize};

/// Token-set F1 from which a caption counts as nearly right.
const NEAR_F1: f64 = 0.5;

/// Figures of generated captions against their references.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CaptionFigures {
    /// CIDEr as [`cider`] defines it, mean over captions: the raw value, 1.0 is published as 100 points.
    pub cider: f64,
    /// Corpus BLEU-1 to BLEU-4, 0 to 1.
    pub bleu: [f64; 4],
    /// ROUGE-L, mean over captions, 0 to 1.
    pub rouge_l: f64,
    /// Share of captions whose tokens ([`tokenize`]: lower case, no punctuation) equal those of a reference, in order.
    pub exact: f64,
    /// Share of captions whose set of tokens has an F1 of 0.5 or more with that of a reference: F1 = 2 common / (own +
    /// theirs), repeats and order not counted. An exact caption is near as well.
    pub near: f64,
}

/// Scores `candidates[i]` against `references[i]`; document frequencies of CIDEr come from these references.
///
/// # Panics
/// When the two slices differ in length, or a candidate has no reference.
pub fn captions(references: &[Vec<String>], candidates: &[String]) -> CaptionFigures {
    let references: Vec<Vec<Tokens>> = references
        .iter()
        .map(|captions| captions.iter().map(|caption| tokenize(caption)).collect())
        .collect();
    let candidates: Vec<Tokens> = candidates.iter().map(|caption| tokenize(caption)).collect();
    caption_figures(&references, &candidates)
}

/// [`captions`] for words instead of texts.
///
/// # Panics
/// When the two slices differ in length, or a candidate has no reference.
pub fn caption_figures(references: &[Vec<Tokens>], candidates: &[Tokens]) -> CaptionFigures {
    let share = |is_right: fn(&Tokens, &Tokens) -> bool| {
        let right = |(references, candidate): &(&Vec<Tokens>, &Tokens)| {
            references.iter().any(|reference| is_right(reference, candidate))
        };
        let count = references.iter().zip(candidates).filter(right).count();
        count as f64 / candidates.len().max(1) as f64
    };
    CaptionFigures {
        cider: mean(&cider(references, candidates)),
        bleu: bleu(references, candidates).corpus,
        rouge_l: mean(&rouge_l(references, candidates)),
        exact: share(|reference, candidate| reference == candidate),
        near: share(is_near),
    }
}

fn is_near(reference: &Tokens, candidate: &Tokens) -> bool {
    let (theirs, own): (BTreeSet<_>, BTreeSet<_>) = (reference.iter().collect(), candidate.iter().collect());
    let common = theirs.intersection(&own).count() as f64;
    reference == candidate || 2.0 * common >= NEAR_F1 * (theirs.len() + own.len()) as f64
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> CaptionFigures {
        let references: Vec<_> = pairs.iter().map(|(reference, _)| vec![(*reference).to_owned()]).collect();
        let candidates: Vec<_> = pairs.iter().map(|(_, candidate)| (*candidate).to_owned()).collect();
        captions(&references, &candidates)
    }

    #[test]
    fn exact_and_near_are_shares() {
        let figures = of(&[
            ("Bow and arrow", "bow and arrow."), // exact up to case and punctuation
            ("red apple", "apple red"),          // F1 1, order differs: near, not exact
            ("red apple", "green apple"),        // F1 0.5: near
            ("grinning cat with smiling eyes", "cat"), // F1 1/3
            ("zebra", ""),
        ]);
        assert_eq!((figures.exact, figures.near), (0.2, 0.6));
    }

    #[test]
    fn captions_that_equal_their_references_have_the_best_figures() {
        let long = "a small dog on a red sofa";
        let figures = of(&[(long, long), ("two cats sleep in the sun", "two cats sleep in the sun")]);
        assert!((figures.cider - 10.0).abs() < 1e-9, "{figures:?}");
        assert!((figures.bleu[3] - 1.0).abs() < 1e-8 && figures.rouge_l == 1.0 && figures.exact == 1.0);
        let one_word = of(&[("zebra", "zebra"), ("apple", "apple")]);
        assert!((one_word.cider - 2.5).abs() < 1e-9, "{one_word:?}");
    }

    #[test]
    fn nothing_to_score_is_zero() {
        assert_eq!(of(&[]), CaptionFigures::default());
        let silent = of(&[("a dog", ""), ("a cat", "")]);
        assert!(silent.bleu.iter().all(|bleu| *bleu < 1e-6), "{silent:?}");
        assert_eq!((silent.cider, silent.rouge_l, silent.near), (0.0, 0.0, 0.0));
    }
}
