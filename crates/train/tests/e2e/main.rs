//! Whole runs through the real programs, each test in a world of its own. One program: linked once.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod again;
mod bench;
mod chaos;
mod common;
mod convert;
mod engines;
mod from;
mod hosts;
mod micro_batches;
mod parted;
mod partition;
mod precision;
mod ranks;
mod refuse;
mod regroup;
mod resume;
mod run;
mod shards;
mod skipped;
mod slurm;
mod stop;
mod stream;
mod t5;
