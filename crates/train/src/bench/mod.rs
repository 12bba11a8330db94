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

/// As [`data::bench::median`]; NaN for no values.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    data::bench::median(values).unwrap_or(f64::NAN)
}
