//! The one hub: config, plan, step, state, evaluation. Everything else is called from here and calls nobody back.

mod agree;
mod build;
mod changes;
mod checkpoints;
mod config;
mod corpus;
mod error;
mod evaluate;
mod feature_file;
mod features;
mod ledger;
mod names;
mod optim;
mod pairs;
mod phases;
mod plan;
mod session;
mod stage;
mod state;
mod status;
mod tensors;
mod trainer;
pub mod verify;

use std::path::{Path, PathBuf};

pub use config::Config;
pub use error::TrainError;
pub use phases::train;
pub use plan::{Plan, Schedule, StagePlan};

/// The run folder that a config names.
///
/// # Errors
/// [`TrainError`] with exit code 78 when the config does not describe a run.
pub fn run_dir(path: &Path, overrides: &[String]) -> Result<PathBuf, TrainError> {
    Ok(Config::read(path, overrides)?.run.dir)
}

/// Every derived number of a run, as text, for the world in the environment.
///
/// # Errors
/// [`TrainError`] with exit code 78 when the config does not describe a run.
pub fn describe(path: &Path, overrides: &[String]) -> Result<String, TrainError> {
    let config = Config::read(path, overrides)?;
    let plan = Plan::new(config, launch::World::from_env()?, path)?;
    Ok(format!("{}\n{}", plan.describe(), build::describe(&plan)?))
}
