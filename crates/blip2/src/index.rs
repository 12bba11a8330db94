//! `blip2 data index`: index files beside the shards, and what there is to know about them.

use std::process::ExitCode;
use std::time::Instant;

use data::index::{Written, write_index_files};
use data::{Counters, Order};

use crate::cli::IndexArgs;
use crate::error::CommandError;

/// Shards that are named when something is wrong in them.
const SHOWN_SHARDS: usize = 10;

/// Writes what is missing, and says what the shards hold.
pub fn index(args: &IndexArgs) -> Result<ExitCode, CommandError> {
    let started = Instant::now();
    let written = write_index_files(&args.shards, args.contents)?;
    for line in report(&written, args.shards_per_block) {
        println!("{line}");
    }
    println!("{:.2} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn report(written: &Written, shards_per_block: usize) -> Vec<String> {
    let index = &written.index;
    let (shards, samples, seen) = (index.num_shards(), index.len(), index.problems().seen);
    let mut lines = vec![
        format!("{shards} shards, {samples} usable samples of {seen}, digest {}", index.digest()),
        format!("{} index files written, {} were there and fitted", written.made, shards - written.made),
    ];
    lines.extend(problems(index.problems()));
    // No order has more than one block of all shards.
    let per_block = shards_per_block.min(shards);
    let quality = Order::in_blocks(0, &index.shard_sizes(0), per_block).shuffle_quality();
    lines.push(format!(
        "blocks of {per_block} shards: neighbours lie {quality:.3} as far apart as in a full shuffle"
    ));
    lines
}

/// Counts by reason, then the worst shards.
fn problems(problems: &Counters) -> Vec<String> {
    let reasons = problems.by_reason().into_iter().map(|(reason, count)| format!("{reason} {count}"));
    let reasons: Vec<String> = reasons.collect();
    if reasons.is_empty() {
        return vec!["nothing is left out".into()];
    }
    vec![format!("left out: {}", reasons.join(", ")), format!("worst: {}", problems.worst(SHOWN_SHARDS))]
}
