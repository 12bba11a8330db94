//! `failure.json`: which worker failed first, and how.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::decide::{End, Ended, Fleet};
use crate::fleet::Processes;
use crate::progress::WorkerPhase;

/// Name of the report in the run folder.
pub const FAILURE: &str = "failure.json";
/// Where the report of the launch before goes, so that the one above is always of this launch.
const BEFORE: &str = "failure-before.json";

/// The first failing worker of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which worker failed first; the others ended because of it.
    pub rank: usize,
    /// How many times the set of ranks had been formed before.
    pub generation: u32,
    /// Its exit code, unless a signal killed it.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// What it was doing, where it said so.
    pub phase: Option<WorkerPhase>,
    /// The step at which it did.
    pub step: Option<u64>,
    /// What happened, as a sentence.
    pub message: String,
    /// When, since the launcher started.
    pub seconds_since_start: f64,
    /// Its log.
    pub log: PathBuf,
    /// Its last lines, at most 100.
    pub last_lines: Vec<String>,
    /// How the others ended, in order of time.
    pub others: Vec<OtherEnd>,
    /// Whether its last words are not on the terminal, where rank 0's are.
    #[serde(skip)]
    pub(crate) is_news: bool,
}

/// Keeps the report of the launch before under another name. Nothing is lost where that fails.
pub(crate) fn set_aside(run_dir: &Path) {
    let _ = fs::rename(run_dir.join(FAILURE), run_dir.join(BEFORE));
}

/// The end of a worker that did not fail first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OtherEnd {
    /// Which worker.
    pub rank: usize,
    /// Its exit code, unless a signal killed it.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// When, since the launcher started.
    pub seconds_since_start: f64,
}

impl Failure {
    /// Workers are counted from this node's first rank.
    pub(crate) fn new(fleet: &Fleet, cause: &Ended, processes: &Processes, first_rank: usize) -> Self {
        let (log, beat) = (processes.log(cause.rank), processes.beat(cause.rank));
        let (exit_code, signal) = split(cause.end);
        let mut others: Vec<&Ended> = fleet.ended.iter().filter(|ended| ended.rank != cause.rank).collect();
        others.sort_by_key(|ended| ended.at);
        let last_lines = log.last_lines();
        let shown = if first_rank == 0 { processes.log(0).last_lines() } else { Vec::new() };
        let is_news =
            last_words(&last_lines).is_some_and(|last| !shown.iter().any(|line| line.trim() == last));
        Self {
            is_news,
            rank: first_rank + cause.rank,
            generation: fleet.generation,
            exit_code,
            signal,
            phase: beat.as_ref().map(|beat| beat.phase),
            step: beat.map(|beat| beat.step),
            message: sentence(first_rank + cause.rank, cause, fleet),
            seconds_since_start: cause.at.as_secs_f64(),
            log: log.path().to_owned(),
            last_lines,
            others: others.into_iter().map(|ended| OtherEnd::new(ended, first_rank)).collect(),
        }
    }

    /// The last line that is not empty: why it ended, where it could say so.
    pub(crate) fn last_words(&self) -> Option<&str> {
        last_words(&self.last_lines)
    }

    /// Puts the report into the run folder, whole or not at all.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let temporary = run_dir.join(format!(".{FAILURE}.tmp"));
        let mut file = File::create(&temporary)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, run_dir.join(FAILURE))?;
        File::open(run_dir)?.sync_all()
    }
}

fn last_words(lines: &[String]) -> Option<&str> {
    lines.iter().map(|line| line.trim()).rfind(|line| !line.is_empty())
}

impl OtherEnd {
    fn new(ended: &Ended, first_rank: usize) -> Self {
        let (exit_code, signal) = split(ended.end);
        Self { rank: first_rank + ended.rank, exit_code, signal, seconds_since_start: ended.at.as_secs_f64() }
    }
}

fn split(end: End) -> (Option<i32>, Option<i32>) {
    match end {
        End::Code(code) => (Some(code), None),
        End::Signal(signal) => (None, Some(signal)),
    }
}

fn sentence(rank: usize, cause: &Ended, fleet: &Fleet) -> String {
    if let Some(hang) = fleet.hang.as_ref().filter(|hang| hang.worker == cause.rank) {
        return format!("rank {rank} {hang}");
    }
    match cause.end {
        End::Code(101) => format!("rank {rank} panicked (exit code 101)"),
        End::Code(code) => format!("rank {rank} exited with code {code}"),
        End::Signal(9) => format!("rank {rank} was killed by SIGKILL (out of memory, or somebody's kill -9)"),
        End::Signal(signal) => {
            let name =
                Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.as_str().into());
            format!("rank {rank} was killed by {name}")
        }
    }
}
