//! The one hub: config, plan, step, state, evaluation. Everything else is called from here and calls nobody back.

mod agree;
pub mod bench;
mod build;
mod changes;
mod checkpoints;
mod config;
pub mod convert;
mod corpus;
mod error;
mod evaluate;
mod feature_file;
mod features;
mod frozen;
mod held;
mod leaps;
mod ledger;
mod loss_scale;
mod names;
mod optim;
mod pairs;
mod phases;
mod plan;
mod ranks;
mod reduction;
mod roll_back;
mod run;
mod session;
mod sizes;
mod skipped_steps;
mod stage;
mod state;
mod status;
mod stream;
mod tensors;
mod texts;
mod trainer;
mod upload;
pub mod verify;

use std::path::{Path, PathBuf};

pub use config::Config;
pub use error::TrainError;
pub use plan::{Plan, Schedule, StagePlan};
pub use run::train;

/// The run folder that a config names.
///
/// # Errors
/// [`TrainError`] with exit code 78 when the config does not describe a run.
pub fn run_dir(path: &Path, overrides: &[String]) -> Result<PathBuf, TrainError> {
    Ok(Config::read(path, overrides)?.run.dir)
}

/// Every derived number of a run, as text, for a world of `world_size` ranks. Nothing is read but configs, and no weight
/// is given memory.
///
/// # Errors
/// [`TrainError`] with exit code 78 when the config does not describe a run.
pub fn describe(path: &Path, overrides: &[String], world_size: usize) -> Result<String, TrainError> {
    let config = Config::read(path, overrides)?;
    let world = launch::World { world_size, local_world_size: world_size, ..launch::World::from_env()? };
    let plan = Plan::new(config, world, path)?;
    let mut text = plan.describe();
    if plan.device == tch::Device::Cpu && plan.config.run.device == config::DeviceChoice::Auto {
        text += "\n  (this machine has no GPU that libtorch sees; one with GPUs takes them)";
    }
    text.extend(sizes::describe_language(&plan)?.map(|line| format!("\n{line}")));
    for phase in [monitor::Phase::Stage1, monitor::Phase::Stage2] {
        let parameters = sizes::trainable_parameters(&plan.config, phase)?;
        text += &format!(
            "\n  {}: {} trainable parameters, {:.1} MB reduced per step and rank",
            phase.name(),
            grouped(parameters),
            1e-6 * plan.reduce.dtype.bytes(parameters.unsigned_abs()) as f64
        );
    }
    Ok(text)
}

/// `186705470` as `186,705,470`.
fn grouped(count: i64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
