//! ROUGE-L (Lin, 2004) as pycocoevalcap computes it.

use crate::tokenize::Tokens;

/// How much more recall weighs than precision.
const BETA: f64 = 1.2;

/// ROUGE-L of each candidate, 0 to 1; the corpus' figure is their mean.
///
/// Best precision and best recall may come from different references, as in the script.
///
/// # Panics
/// When the two slices differ in length, or a candidate has no reference.
pub fn rouge_l(references: &[Vec<Tokens>], candidates: &[Tokens]) -> Vec<f64> {
    assert_eq!(references.len(), candidates.len(), "one list of references for each candidate");
    references
        .iter()
        .zip(candidates)
        .map(|(references, candidate)| of_caption(references, candidate))
        .collect()
}

fn of_caption(references: &[Tokens], candidate: &Tokens) -> f64 {
    assert!(!references.is_empty(), "every candidate has a reference");
    let (mut precision, mut recall) = (0f64, 0f64);
    for reference in references {
        let common = common_subsequence(reference, candidate) as f64;
        // A caption without a word counts as one empty word.
        precision = precision.max(common / candidate.len().max(1) as f64);
        recall = recall.max(common / reference.len().max(1) as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Length of the longest common subsequence.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (place, other) in b.iter().enumerate() {
            let above = row[place + 1];
            row[place + 1] = if word == other { diagonal + 1 } else { above.max(row[place]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
