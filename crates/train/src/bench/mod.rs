//! `blip2 bench step` and `blip2 bench allreduce`: what a step costs, how it scales over ranks, how fast ranks talk.
//!
//! Ranks are real processes, started by our own launcher; each leaves a file with what it measured.

mod allreduce;
mod scaling;
mod step;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use allreduce::{allreduce, allreduce_rank};
pub use scaling::{step, step_rank};
pub use step::StepOptions;

use crate::error::TrainError;

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    std::fs::write(path, text).map_err(|source| TrainError::Write { path: path.to_owned(), source })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let refuse = |source| TrainError::Read { path: path.to_owned(), source };
    let text = std::fs::read(path).map_err(refuse)?;
    serde_json::from_slice(&text).map_err(|error| refuse(error.into()))
}

/// The middle one of `values`, the mean of the middle two where there is none; NaN for no values.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
