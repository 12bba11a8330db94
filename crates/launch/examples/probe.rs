//! The smallest worker that keeps the contract, and a launcher for it. The process tests run both.
//!
//! `probe launch DIR NPROC` launches `probe work DIR` NPROC times; each worker writes `DIR/pid-RANK`, waits, and ends
//! with 75 when asked to stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use launch::{Exit, LaunchError, LaunchSpec, StopFlag, World, die_with_parent, launch};

/// So that a test that goes wrong leaves nothing behind.
const AT_MOST: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["launch", dir, nproc] => start(Path::new(dir), nproc),
        ["work", dir] => work(Path::new(dir)),
        _ => Err(LaunchError::Arguments { detail: "probe launch DIR NPROC | probe work DIR".into() }),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("probe: {error}");
            error.exit().into()
        }
    }
}

fn start(dir: &Path, nproc: &str) -> Result<Exit, LaunchError> {
    let bad = |detail: String| LaunchError::Arguments { detail };
    let spec = LaunchSpec {
        worker: std::env::current_exe().map_err(|e| bad(e.to_string()))?,
        args: vec!["work".into(), dir.into()],
        nproc: nproc.parse().map_err(|_| bad(format!("{nproc:?} is no number")))?,
        run_dir: dir.into(),
        max_restarts: 0,
    };
    launch(&spec, &|line| eprintln!("{line}"))
}

fn work(dir: &Path) -> Result<Exit, LaunchError> {
    let world = World::from_env()?;
    die_with_parent(&world)?;
    let stop = StopFlag::install()?;
    let path: PathBuf = dir.join(format!("pid-{}", world.rank));
    std::fs::write(&path, std::process::id().to_string())
        .map_err(|source| LaunchError::Write { path, source })?;
    let start = Instant::now();
    while !stop.requested() && start.elapsed() < AT_MOST {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(if stop.requested() { Exit::Stopped } else { Exit::GiveUp })
}
