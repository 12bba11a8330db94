//! How much of a mixture each of its sets is.

use crate::error::DataError;

/// Sets of a mixture; each needs a place in a period.
const MAX_SETS: usize = 1000;
/// More than that is a slip of the keyboard; times the samples of a set it is still a number.
const MAX_SHARE: f64 = 1e9;

/// How much of a mixture a set is. All sets of one mixture say it the same way.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// In relation to the other sets' ratios; they need not sum to 1.
    Ratio(f64),
    /// So many times as often as its size says: 1 for all sets is as if they were one.
    Repeats(f64),
}

impl Share {
    fn is_ratio(self) -> bool {
        matches!(self, Self::Ratio(_))
    }

    fn value(self) -> f64 {
        match self {
            Self::Ratio(value) | Self::Repeats(value) => value,
        }
    }
}

/// `problem` of the set with this number.
pub(crate) fn wrong(set: usize, problem: &str) -> DataError {
    DataError::Config { key: format!("data.source.sets[{set}]"), problem: problem.to_owned() }
}

/// What is wrong with shares, each with the number of its set; whatever shards the sets hold.
pub(crate) fn problems(shares: &[(usize, Share)]) -> Vec<DataError> {
    let by_ratio = shares.first().is_some_and(|(_, share)| share.is_ratio());
    let mut problems = Vec::new();
    if shares.len() > MAX_SETS {
        problems.push(wrong(MAX_SETS, "a mixture has 1000 sets at most; put some of them together"));
    }
    for &(set, share) in shares {
        if share.is_ratio() != by_ratio {
            problems.push(wrong(set, "either all sets say `ratio` or all say `repeats`"));
        }
        if !(share.value() > 0.0 && share.value() <= MAX_SHARE) {
            problems.push(wrong(set, "its `ratio` or `repeats` must be above 0 and at most 1e9"));
        }
    }
    problems
}

/// What each set weighs, from its share and its number of samples.
pub(crate) fn weights(sets: impl Iterator<Item = (Share, usize)>) -> Result<Vec<f64>, DataError> {
    let sets: Vec<(Share, usize)> = sets.collect();
    if sets.is_empty() {
        return Err(wrong(0, "a mixture needs a set"));
    }
    let shares: Vec<(usize, Share)> = sets.iter().map(|(share, _)| *share).enumerate().collect();
    if let Some(problem) = problems(&shares).into_iter().next() {
        return Err(problem);
    }
    if let Some(set) = sets.iter().position(|(_, num_samples)| *num_samples == 0) {
        return Err(wrong(set, "it holds no usable sample"));
    }
    let weight = |(share, num_samples): &(Share, usize)| match share {
        Share::Ratio(ratio) => *ratio,
        Share::Repeats(repeats) => repeats * *num_samples as f64,
    };
    Ok(sets.iter().map(weight).collect())
}
