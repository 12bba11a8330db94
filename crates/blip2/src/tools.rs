//! `blip2 data make`, `verify`, `stats` and `inspect`: shards out of pictures, and what is in shards.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use data::source::CacheConfig;
use data::tools::{self, MakeOptions, PAGE_SAMPLES, Survey};

use crate::error::CommandError;

/// `data verify` found bad samples; what could be read is otherwise fine.
const BAD_SAMPLES: u8 = 1;

#[derive(Args)]
pub struct MakeArgs {
    /// Folder of the pictures. Without --annotations all in it are taken, with the .txt or .json beside each.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// .json, .jsonl, .csv or .tsv that names pictures and captions, as COCO, VG, CC3M, SBU and LAION come. May be
    /// given more than once.
    #[arg(long, value_name = "FILE")]
    annotations: Vec<PathBuf>,
    /// Gets the shards.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shards are called NAME-000000.tar and so on.
    #[arg(long, default_value = "train")]
    name: String,
    /// Samples of one shard.
    #[arg(long, value_name = "N", default_value = "1000")]
    samples_per_shard: NonZeroUsize,
    /// Scale larger pictures down so that their shorter side is this long, and store them as JPEG. Default: keep
    /// every file as it is.
    #[arg(long, value_name = "PIXELS")]
    shorter_side: Option<NonZeroUsize>,
    /// JPEG quality of scaled pictures.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Threads. Default: one for each core.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

#[derive(Args)]
pub struct ShardsArgs {
    /// Shards: files, folders, patterns such as 'data/{000..119}.tar' or 'data/*.tar', list files (.txt), URLs.
    #[arg(required = true, value_name = "SHARDS")]
    shards: Vec<String>,
    /// Where shards behind URLs are kept. Default: data/shard_cache.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Threads. Default: one for each core.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

#[derive(Args)]
pub struct LookArgs {
    #[command(flatten)]
    which: ShardsArgs,
    /// One line of JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    which: ShardsArgs,
    /// The page to write.
    #[arg(long, value_name = "FILE", default_value = "data.html")]
    out: PathBuf,
    /// Samples on the page, evenly spread over the shards.
    #[arg(long, value_name = "N", default_value_t = PAGE_SAMPLES)]
    samples: usize,
}

/// Makes shards and says what is in them and what was left out.
pub fn make(args: &MakeArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let made = tools::make(
        &MakeOptions {
            images: args.images.clone(),
            annotations: args.annotations.clone(),
            out: args.out.clone(),
            name: args.name.clone(),
            samples_per_shard: args.samples_per_shard.get(),
            shorter_side: args.shorter_side.map(NonZeroUsize::get),
            quality: args.quality,
            workers: workers(args.workers),
        },
        say,
    )?;
    let (shards, dir) = (made.shards.len(), args.out.display());
    println!(
        "{} samples with {} captions in {shards} shards in {dir}; {} pictures scaled down",
        made.samples, made.captions, made.resized
    );
    if let Some(left_out) = made.left_out() {
        println!("left out: {left_out}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Decodes every sample; exit code 1 when one is bad.
pub fn verify(args: &LookArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let survey = survey(&args.which, 0, say)?;
    let problems = &survey.problems;
    if args.json {
        println!("{}", survey.problems_json());
    } else {
        println!("{} samples are good, {} left out", survey.statistics.samples, problems.total());
        for ((shard, reason), count) in &problems.skipped {
            println!("{shard}: {reason} {count}");
        }
        for error in &survey.bad {
            println!("{error}");
        }
    }
    Ok(if problems.total() == 0 { ExitCode::SUCCESS } else { ExitCode::from(BAD_SAMPLES) })
}

/// Numbers about the shards.
pub fn stats(args: &LookArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let survey = survey(&args.which, 0, say)?;
    if args.json {
        println!("{}", survey.json());
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in survey.statistics.lines() {
        println!("{name:<18} {value}");
    }
    println!("{:<18} {}", "left out", survey.problems.total());
    let duplicates = &survey.duplicates;
    println!(
        "{:<18} {} by bytes, {} more by look",
        "duplicates", duplicates.same_bytes, duplicates.same_look
    );
    Ok(ExitCode::SUCCESS)
}

/// Writes the page.
pub fn inspect(args: &InspectArgs, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let survey = survey(&args.which, args.samples, say)?;
    tools::write_page(&args.out, &args.which.shards.join(" "), &survey)?;
    println!(
        "{} samples, {} of them on {}",
        survey.statistics.samples,
        survey.shown.len(),
        args.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn survey(args: &ShardsArgs, show: usize, say: &dyn Fn(&str)) -> Result<Survey, CommandError> {
    let index = Arc::new(
        CacheConfig { dir: args.cache.clone(), ..CacheConfig::default() }
            .open(std::slice::from_ref(&args.shards))?,
    );
    Ok(tools::survey(&index, workers(args.workers), show, say)?)
}

fn workers(asked: Option<NonZeroUsize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    asked.map_or_else(cores, NonZeroUsize::get)
}
