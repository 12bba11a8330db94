//! `blip2 bench loader`: how fast shards become training views, beside a Python loader. `step` and `allreduce` are for
//! workers to measure.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use data::bench::{self, BenchOptions, BenchReport};

use crate::error::CommandError;
use crate::worker::{Worker, config_args};

#[derive(Args)]
pub struct LoaderArgs {
    /// Measure webdataset + Pillow + numpy in turn with ours; `scripts/bench --peers` sets them up.
    #[arg(long)]
    peer: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 24.0, value_parser = seconds)]
    seconds: f64,
}

#[derive(Args)]
pub struct StepArgs {
    /// The TOML file whose sizes are measured, with random weights and inputs.
    config: PathBuf,
    /// Ranks that are set beside one rank, each on one core with as many pairs; 1 measures one rank on all cores alone.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    ranks: NonZeroUsize,
    /// Pairs of each rank in a step.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    pairs: NonZeroUsize,
    /// Steps that are timed, behind one that is not.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(2))]
    steps: NonZeroUsize,
    /// Replace a value of the config: `--set data.max_text_tokens=16`. May be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct AllreduceArgs {
    /// Ranks, each a process of this machine.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=256))]
    ranks: u16,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|_| "is no number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0.1 to 3600".to_owned()) }
}

/// Makes shards in the cache folder the first time, measures, prints.
pub fn loader(args: &LoaderArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let cache = launch::cache_dir().ok_or(CommandError::NoCache)?;
    let options = BenchOptions {
        dir: cache.join("bench"),
        seconds: args.seconds,
        peer: args.peer.then(|| bench::peer_python(&cache)),
        core: launch::pin_to_core(0),
    };
    let report = bench::bench_loader(&options, say)?;
    print(&report);
    if args.json {
        println!("{}", report.json());
    }
    Ok(ExitCode::SUCCESS)
}

/// One rank beside several.
pub fn step(args: &StepArgs) -> Result<ExitCode, CommandError> {
    let mut worker_args = config_args("bench-step", &args.config, &args.overrides);
    let mut options = Vec::new();
    for (name, count) in [("--ranks", args.ranks), ("--pairs", args.pairs), ("--steps", args.steps)] {
        options.extend([name.into(), count.to_string().into()]);
    }
    options.extend(args.json.then(|| "--json".into()));
    worker_args.splice(1..1, options);
    Worker::beside_this_program()?.run("a measurement", &worker_args)
}

/// Sums over ranks.
pub fn allreduce(args: &AllreduceArgs) -> Result<ExitCode, CommandError> {
    let mut worker_args: Vec<OsString> =
        vec!["bench-allreduce".into(), "--ranks".into(), args.ranks.to_string().into()];
    worker_args.extend(args.json.then(|| "--json".into()));
    Worker::beside_this_program()?.run("a measurement", &worker_args)
}

fn print(report: &BenchReport) {
    match report.core {
        Some(core) => println!("everything on core {core}, by its CPU mask; ours and the peer in turns"),
        None => println!("the system did not let this process be pinned to one core"),
    }
    println!("500x375 JPEG ({} bytes on average) to 224 training view, images a second:", report.jpeg_bytes);
    println!("  our loader         {:>10.0}", report.images_per_second);
    if let (Some(peer), Some(ratio)) = (report.peer_images_per_second, report.ratio_to_peer) {
        println!("  Python             {peer:>10.0}");
        println!("  ours / Python      {ratio:>10.2}");
    }
    println!("the limit:");
    println!("  decoding alone     {:>10.0} images a second", report.decode_only_images_per_second);
    println!("  decoding + view    {:>10.0} images a second", report.views_only_images_per_second);
    println!("  reading alone      {:>10.0} samples a second", report.read_only_samples_per_second);
    println!("  reading 1 KB each  {:>10.0} samples a second", report.read_small_samples_per_second);
}
