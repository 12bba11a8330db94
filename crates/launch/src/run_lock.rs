//! One run folder, one launcher on each node and one run.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::LaunchError;

/// Who holds a run folder, for the message of those who want to as well.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
}

/// A run folder is this process's for as long as this lives. The system lets go of it when the process ends, however it
/// ends. Launchers and workers have locks of their own: workers may have been started by somebody else.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the folder for the worker that writes into it, making it if need be. Never waits.
    ///
    /// # Errors
    /// [`LaunchError::Busy`] naming host and process of the holder, [`LaunchError::Write`] when the file system gives no
    /// lock.
    pub fn of_worker(run_dir: &Path) -> Result<Self, LaunchError> {
        Self::acquire(run_dir, ".lock")
    }

    /// Takes the folder for the launcher of node `node_rank`.
    pub(crate) fn of_launcher(run_dir: &Path, node_rank: usize) -> Result<Self, LaunchError> {
        Self::acquire(run_dir, &format!(".launcher-{node_rank}.lock"))
    }

    fn acquire(run_dir: &Path, name: &str) -> Result<Self, LaunchError> {
        let path = run_dir.join(name);
        let failed = |source| LaunchError::Write { path: path.clone(), source };
        fs::create_dir_all(run_dir).map_err(failed)?;
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(run_dir, &mut file)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let holder = Holder { host: host_name(), pid: std::process::id() };
        let line = serde_json::to_vec(&holder).unwrap_or_default();
        file.set_len(0).and_then(|()| file.write_all(&line)).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn busy(run_dir: &Path, file: &mut File) -> LaunchError {
    let mut text = String::new();
    // Best effort: the holder may be writing the line right now.
    let holder: Option<Holder> =
        file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
    let Holder { host, pid } = holder.unwrap_or(Holder { host: "unknown".into(), pid: 0 });
    LaunchError::Busy { run_dir: run_dir.to_owned(), host, pid }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let (first, _worker) = (
            RunLock::of_launcher(&new, 0).unwrap(),
            RunLock::of_worker(&new).expect("workers have their own"),
        );
        RunLock::of_launcher(&new, 1).expect("another node's launcher may come");
        for second in [RunLock::of_launcher(&new, 0), RunLock::of_worker(&new)] {
            let error = second.unwrap_err();
            assert_eq!(error.exit(), crate::Exit::Busy);
            assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        }
        drop(first);
        RunLock::of_launcher(&new, 0).expect("it is free again");
    }
}
