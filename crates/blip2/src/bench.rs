//! `blip2 bench loader`: how fast shards become training views, beside a Python loader.

use std::process::ExitCode;

use clap::Args;
use data::bench::{self, BenchOptions, BenchReport};

use crate::error::CommandError;

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
    };
    let report = bench::bench_loader(&options, say)?;
    print(&report);
    if args.json {
        println!("{}", report.json());
    }
    Ok(ExitCode::SUCCESS)
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
