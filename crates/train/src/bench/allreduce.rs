//! `blip2-worker bench-allreduce`: how fast ranks of this machine sum over Gloo, beside how fast it copies memory.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use collectives::ProcessGroup;
use launch::World;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{median, read_json, write_json};
use crate::error::TrainError;
use crate::ranks;

/// Hidden subcommand of `blip2-worker` that [`allreduce_rank`] is behind.
const SUBCOMMAND: &str = "bench-allreduce-rank";
/// Bytes of the smallest message and of the largest; each is four times the one before.
const SIZES: (usize, usize) = (1 << 10, 64 << 20);
/// Seconds that a size is measured for, where it is not so slow that [`REPEATS`] take longer.
const SECONDS: f64 = 0.3;
/// Fewest and most repeats of a size.
const REPEATS: (f64, f64) = (5.0, 2000.0);
/// A copy of less is too short for the clock: several are timed as one.
const COPIED_AT_ONCE: usize = 1 << 20;

/// One size. Rates are of rank 0, medians over repeats; 1 GB is 10^9 bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    /// Of each rank's message.
    bytes: usize,
    repeats: usize,
    seconds: f64,
    /// Message by time.
    gb_per_second: f64,
    /// What goes over each rank's link in each direction, 2 (N - 1) / N of the message, by time: comparable between
    /// any numbers of ranks, and what a perfect link would carry.
    link_gb_per_second: f64,
    /// `memcpy` of as many bytes, on all ranks at once.
    memcpy_gb_per_second: f64,
}

/// The whole measurement; with `--json` the last line.
#[derive(Serialize)]
struct Report<'a> {
    ranks: usize,
    fabric: &'static str,
    rows: &'a [Row],
}

/// Sums messages of 1 KiB to 64 MiB over `nproc` ranks of this machine. Text; with `json` its last line is an object.
///
/// # Errors
/// [`TrainError::Ranks`] where the ranks do not end well.
pub fn allreduce(nproc: usize, json: bool) -> Result<String, TrainError> {
    let folder = ranks::folder()?;
    let args = [SUBCOMMAND.into(), folder.path().into()].to_vec();
    ranks::run(args, nproc, folder.path())?;
    let rows: Vec<Row> = read_json(&file_in(folder.path()))?;
    let mut text = table(nproc, &rows);
    if json {
        text += &format!("\n{}", serde_json::json!(Report { ranks: nproc, fabric: "gloo", rows: &rows }));
    }
    Ok(text)
}

/// One rank of [`allreduce`]; rank 0 leaves a file in the folder `out`. Started through the launcher.
///
/// # Errors
/// [`TrainError::Peer`] when another rank is gone, [`TrainError::Verify`] when a sum is wrong, [`TrainError::Write`].
pub fn allreduce_rank(out: &Path) -> Result<(), TrainError> {
    let world = World::from_env()?;
    launch::die_with_parent(&world)?;
    let group = collectives::connect(&world, Device::Cpu)?;
    let sizes = std::iter::successors(Some(SIZES.0), |bytes| Some(4 * bytes));
    let sizes = sizes.take_while(|&bytes| bytes <= SIZES.1);
    let rows: Vec<Row> = sizes.map(|bytes| measure(group.as_ref(), bytes)).collect::<Result<_, _>>()?;
    if world.rank == 0 {
        write_json(&file_in(out), &rows)?;
    }
    Ok(group.barrier()?)
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("rows.json")
}

fn measure(group: &dyn ProcessGroup, bytes: usize) -> Result<Row, TrainError> {
    let mut tensor = Tensor::ones([(bytes / size_of::<f32>()) as i64], (Kind::Float, Device::Cpu));
    group.all_reduce_sum(&mut tensor)?;
    let ranks = group.world_size() as f64;
    if tensor.ne(ranks).any().int64_value(&[]) != 0 {
        return Err(TrainError::Verify(format!("ones of {ranks} ranks did not sum to {ranks}")));
    }
    // Sums of zeros stay what they are.
    let mut tensor = tensor.zeros_like();
    let mut sum = || group.all_reduce_sum(&mut tensor);
    let repeats = repeats(group, &mut sum)?;
    group.barrier()?;
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let started = Instant::now();
        sum()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let seconds = median(seconds);
    group.barrier()?;
    let memcpy_gb_per_second = 1e-9 * bytes as f64 / copy_seconds(bytes);
    let gb_per_second = 1e-9 * bytes as f64 / seconds;
    let link_gb_per_second = gb_per_second * 2.0 * (ranks - 1.0) / ranks;
    Ok(Row { bytes, repeats, seconds, gb_per_second, link_gb_per_second, memcpy_gb_per_second })
}

/// How often rank 0 can do it in [`SECONDS`]: the same number on all ranks.
fn repeats(
    group: &dyn ProcessGroup,
    sum: &mut dyn FnMut() -> Result<(), collectives::CommError>,
) -> Result<usize, TrainError> {
    const TRIES: usize = 3;
    let started = Instant::now();
    for _ in 0..TRIES {
        sum()?;
    }
    let mut seconds = Tensor::from_slice(&[started.elapsed().as_secs_f64() / TRIES as f64]);
    group.broadcast(&mut seconds, 0)?;
    Ok((SECONDS / seconds.double_value(&[0])).clamp(REPEATS.0, REPEATS.1) as usize)
}

/// Seconds of one `memcpy`.
fn copy_seconds(bytes: usize) -> f64 {
    let from = vec![1u8; bytes];
    let mut to = vec![0u8; bytes];
    let at_once = (COPIED_AT_ONCE / bytes).max(1);
    let began = Instant::now();
    let mut seconds = Vec::new();
    while began.elapsed().as_secs_f64() < 0.5 * SECONDS || seconds.len() < REPEATS.0 as usize {
        let started = Instant::now();
        for _ in 0..at_once {
            to.copy_from_slice(black_box(&from));
            black_box(&mut to);
        }
        seconds.push(started.elapsed().as_secs_f64() / at_once as f64);
    }
    median(seconds)
}

fn table(ranks: usize, rows: &[Row]) -> String {
    let mut text = format!(
        "all-reduce (fp32, sum) between {ranks} ranks of this machine over Gloo, medians; GB = 10^9 bytes\n  \
         message        time   message/time   on a link       memcpy  link/memcpy"
    );
    for row in rows {
        text += &format!(
            "\n  {:>7} {:>8.1} us {:>9.3} GB/s {:>6.3} GB/s {:>7.2} GB/s {:>10.1} %",
            size_text(row.bytes),
            1e6 * row.seconds,
            row.gb_per_second,
            row.link_gb_per_second,
            row.memcpy_gb_per_second,
            100.0 * row.link_gb_per_second / row.memcpy_gb_per_second,
        );
    }
    text
}

/// `16 KiB`, `64 MiB`.
fn size_text(bytes: usize) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) }
}
