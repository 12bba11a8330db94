//! Ranks that this program starts of itself on this machine, for what takes several: comparisons and measurements.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use launch::{Exit, LaunchSpec, Nodes, Patience};

use crate::error::TrainError;

const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs this program with `args` as `nproc` ranks, once; their logs go to `dir`.
///
/// # Errors
/// [`TrainError::Ranks`] with the last words of each rank when they do not end well, [`TrainError::Launch`] when they
/// cannot be started.
pub(crate) fn run(args: Vec<OsString>, nproc: usize, dir: &Path) -> Result<(), TrainError> {
    let worker =
        std::env::current_exe().map_err(|source| TrainError::Read { path: "blip2-worker".into(), source })?;
    let run_dir = dir.to_owned();
    // They tell of no phases, and a step of a model of paper size takes minutes on a CPU.
    let patience = Patience { start: A_DAY, ..Patience::default() };
    let nodes = Nodes::one();
    let spec = LaunchSpec { worker, args, nproc, run_dir, max_restarts: 0, nodes, patience };
    let reports = RefCell::new(Vec::new());
    let exit = launch::launch(&spec, &|line| reports.borrow_mut().push(line.to_owned()))?;
    if exit == Exit::Done {
        return Ok(());
    }
    let log = last_words(dir, nproc);
    Err(TrainError::Ranks { exit, detail: format!("{}{log}", reports.borrow().join("; ")) })
}

/// The last line of each rank's log.
fn last_words(dir: &Path, nproc: usize) -> String {
    let of = |rank: usize| {
        let log = std::fs::read_to_string(dir.join("logs").join(format!("rank-{rank}.log"))).ok()?;
        log.lines().rfind(|line| !line.is_empty()).map(|line| format!("; rank {rank} said: {line}"))
    };
    (0..nproc).filter_map(of).collect()
}

/// A folder for what the ranks leave; it goes when it is dropped.
///
/// # Errors
/// [`TrainError::Write`].
pub(crate) fn folder() -> Result<tempfile::TempDir, TrainError> {
    tempfile::tempdir().map_err(|source| TrainError::Write { path: std::env::temp_dir(), source })
}
