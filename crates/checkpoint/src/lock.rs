//! One run folder, one run: a lock that the operating system releases when its holder dies, however it dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CheckpointError;

/// Name of the lock file in the run folder.
const LOCK: &str = ".lock";

/// Who holds a run folder, for the message of those who want it too.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
}

/// The run folder is ours as long as this lives.
#[derive(Debug)]
pub struct RunLock {
    // Held for its lock only; the system drops the lock with the descriptor.
    _file: File,
}

impl RunLock {
    /// Takes the run folder, making it if need be. Never waits.
    ///
    /// # Errors
    /// [`CheckpointError::Busy`] naming host and process of the holder, [`CheckpointError::Io`] when the file system
    /// gives no lock.
    pub fn acquire(dir: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(dir).map_err(CheckpointError::io("create", dir))?;
        let path = dir.join(LOCK);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(CheckpointError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(dir, &mut file)),
            Err(TryLockError::Error(source)) => return Err(CheckpointError::io("lock", &path)(source)),
        }
        let holder = Holder { host: host_name(), pid: std::process::id() };
        let line = serde_json::to_vec(&holder).unwrap_or_default();
        let written = file.set_len(0).and_then(|()| file.write_all(&line));
        written.map_err(CheckpointError::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

fn busy(dir: &Path, file: &mut File) -> CheckpointError {
    let mut text = String::new();
    // Best effort: the holder may be writing the line right now.
    let holder: Option<Holder> =
        file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str(&text).ok());
    let Holder { host, pid } = holder.unwrap_or_else(|| Holder { host: "unknown".to_owned(), pid: 0 });
    CheckpointError::Busy { dir: dir.to_path_buf(), host, pid }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}
