//! CIDEr (Vedantam et al., CVPR 2015) as pycocoevalcap's `Cider` computes it, which is the paper's CIDEr-D: counts are
//! clipped to the reference's, and a Gaussian of the length difference makes padding useless.

use std::collections::{BTreeMap, BTreeSet};

use crate::ngram::{Counts, LONGEST, counts, words};
use crate::tokenize::Tokens;

/// Width of the Gaussian, in bigrams.
const SIGMA: f64 = 6.0;

/// CIDEr of each candidate; the corpus' figure is their mean. 0 to 10: a caption of 4 words or more that equals its only
/// reference has 10 (published as 1000 "points"), one of a single word at most 2.5, since it has no longer n-grams.
///
/// Document frequencies come from these references: an n-gram that occurs with every picture weighs nothing, and with a
/// single picture every score is 0.
///
/// # Panics
/// When the two slices differ in length, or a candidate has no reference.
pub fn cider(references: &[Vec<Tokens>], candidates: &[Tokens]) -> Vec<f64> {
    assert_eq!(references.len(), candidates.len(), "one list of references for each candidate");
    let of_picture = |captions: &Vec<Tokens>| captions.iter().map(|caption| words(caption)).collect();
    let references: Vec<Vec<Tokens>> = references.iter().map(of_picture).collect();
    let weights = Weights::of(&references);
    let score = |(references, candidate): (&Vec<Tokens>, &Tokens)| {
        assert!(!references.is_empty(), "every candidate has a reference");
        let candidate = words(candidate);
        let candidate = weights.vector(&candidate);
        let sum: f64 =
            references.iter().map(|reference| similarity(&candidate, &weights.vector(reference))).sum();
        10.0 * sum / references.len() as f64
    };
    references.iter().zip(candidates).map(score).collect()
}

/// Inverse document frequencies; a document is all references of one picture.
struct Weights<'a> {
    documents_with: BTreeMap<&'a [String], u32>,
    log_documents: f64,
}

/// tf-idf of a caption, by n-gram length, and the norms.
struct Vector<'a> {
    weights: [BTreeMap<&'a [String], f64>; LONGEST],
    norms: [f64; LONGEST],
    /// Bigrams: what the script takes as the caption's length.
    length: f64,
}

impl<'a> Weights<'a> {
    fn of(references: &'a [Vec<Tokens>]) -> Self {
        let mut documents_with = BTreeMap::new();
        for document in references {
            let ngrams = document.iter().flat_map(|reference| counts(reference)).flat_map(Counts::into_keys);
            for ngram in ngrams.collect::<BTreeSet<_>>() {
                *documents_with.entry(ngram).or_default() += 1;
            }
        }
        Self { documents_with, log_documents: (references.len() as f64).ln() }
    }

    fn vector<'c>(&self, caption: &'c Tokens) -> Vector<'c> {
        let weights = counts(caption).map(|ngrams| {
            let weigh = |(ngram, count): (&'c [String], u32)| {
                let documents = self.documents_with.get(ngram).copied().unwrap_or(0).max(1);
                (ngram, f64::from(count) * (self.log_documents - f64::from(documents).ln()))
            };
            ngrams.into_iter().map(weigh).collect::<BTreeMap<_, _>>()
        });
        let norms =
            std::array::from_fn(|n| weights[n].values().map(|weight| weight * weight).sum::<f64>().sqrt());
        Vector { weights, norms, length: caption.len().saturating_sub(1) as f64 }
    }
}

/// Mean over n-gram lengths of the clipped cosine, times the Gaussian of the length difference. 0 to 1.
fn similarity(candidate: &Vector, reference: &Vector) -> f64 {
    let apart = candidate.length - reference.length;
    let gaussian = (-apart * apart / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |n: usize| {
        let clipped = candidate.weights[n].iter().filter_map(|(ngram, weight)| {
            let other = reference.weights[n].get(ngram)?;
            Some(weight.min(*other) * other)
        });
        let norm = candidate.norms[n] * reference.norms[n];
        if norm > 0.0 { clipped.sum::<f64>() / norm } else { 0.0 }
    };
    gaussian * (0..LONGEST).map(cosine).sum::<f64>() / LONGEST as f64
}
