//! The checkpoints of one run: committed by rename, found by scanning, the newest valid one first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::CheckpointError;
use crate::disk::{Disk, RealDisk};
use crate::durable::replace_on;
use crate::folder::{self, Snapshot};

/// Start of a checkpoint folder's name; the step follows in at least eight digits.
const STEP: &str = "step-";
/// Start of the name of a folder that is being written.
const WRITING: &str = ".writing-";
/// Start of the name of a folder that gives way to a new one of the same step.
const REPLACED: &str = ".replaced-";
/// Start of the name of a folder that is being deleted.
const DELETING: &str = ".deleting-";
/// Start of the name of a folder that training went back behind. Kept for a person to look at, never deleted.
const SUPERSEDED: &str = "superseded-";
/// The file that holds the step of the pinned checkpoint.
const PIN: &str = "best";

/// A checkpoint's place, as its folder's name tells it; not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Optimizer steps done.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
}

/// A verified checkpoint in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Optimizer steps done.
    pub step: u64,
    /// The folder it was read from.
    pub path: PathBuf,
    /// Its content.
    pub snapshot: Snapshot,
    /// One line for each newer checkpoint that had to be passed over, naming file and chunk.
    pub warnings: Vec<String>,
}

/// The checkpoints of one run, open for writing. One process a run holds one (`launch::RunLock`); who only reads
/// calls [`list`] and [`latest_valid`].
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    keep: usize,
    disk: Arc<dyn Disk>,
}

/// The checkpoints in `dir`, oldest first; empty when there is no such folder.
///
/// # Errors
/// [`CheckpointError::Io`] when the folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Listed>, CheckpointError> {
    let mut found: Vec<Listed> = names(dir)?
        .into_iter()
        .filter_map(|name| {
            let step = name.strip_prefix(STEP)?.parse().ok()?;
            (folder_name(step) == name).then(|| Listed { step, path: dir.join(name) })
        })
        .collect();
    found.sort_by_key(|listed| listed.step);
    Ok(found)
}

/// Loads the newest checkpoint of `dir` that is whole; `None` when there is none at all.
///
/// # Errors
/// [`CheckpointError::NoneValid`] when there are checkpoints and none can be used: starting anew is then the user's
/// decision, not ours.
pub fn latest_valid(dir: &Path) -> Result<Option<Loaded>, CheckpointError> {
    let mut warnings = Vec::new();
    for Listed { step, path } in list(dir)?.into_iter().rev() {
        match folder::load(&path) {
            Ok((manifest, _)) if manifest.step != step => {
                warnings.push(format!("{}: the manifest says step {}", path.display(), manifest.step));
            }
            Ok((_, snapshot)) => return Ok(Some(Loaded { step, path, snapshot, warnings })),
            Err(error) => warnings.push(error.to_string()),
        }
    }
    if warnings.is_empty() {
        return Ok(None);
    }
    Err(CheckpointError::NoneValid { dir: dir.to_path_buf(), problems: warnings })
}

/// The step of the pinned checkpoint of `dir`, if one is pinned and still there.
///
/// # Errors
/// [`CheckpointError::Io`] when the pin cannot be read.
pub fn pinned(dir: &Path) -> Result<Option<Listed>, CheckpointError> {
    let pin = dir.join(PIN);
    let text = match fs::read_to_string(&pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(CheckpointError::io("read", &pin))?,
    };
    let step: Option<u64> = text.trim().parse().ok();
    Ok(list(dir)?.into_iter().find(|listed| Some(listed.step) == step))
}

impl Store {
    /// Opens the checkpoints of a run, making `dir` if need be, and clears what crashed saves left there. Keeps the
    /// newest `keep` checkpoints (at least one) and the pinned one.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the folder cannot be made or cleared.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, CheckpointError> {
        Self::open_on(Arc::new(RealDisk), dir, keep)
    }

    /// As [`Store::open`], on a disk of the caller's choice.
    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path, keep: usize) -> Result<Self, CheckpointError> {
        fs::create_dir_all(dir).map_err(CheckpointError::io("create", dir))?;
        let store = Self { dir: dir.to_path_buf(), keep: keep.max(1), disk };
        store.clear_leftovers()?;
        Ok(store)
    }

    /// The folder the checkpoints lie in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a checkpoint; it is there under its name once all of it is on the disk. Only then are older ones deleted.
    /// A checkpoint of the same step is replaced. Checkpoints of later steps belong to a course that training has left
    /// (it resumed from before them); they are renamed `superseded-*`, so that no later resume picks them up.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails; the older checkpoints are then still there. Also when only the
    /// deletion of an older one failed: then the new one is there as well, and the next save deletes again.
    pub fn save(&self, snapshot: &Snapshot, step: u64) -> Result<PathBuf, CheckpointError> {
        let temporary = self.dir.join(format!("{WRITING}{}", folder_name(step)));
        let target = self.dir.join(folder_name(step));
        let result = self.write_and_commit(snapshot, step, &temporary, &target);
        if result.is_err() {
            let _ = self.disk.remove(&temporary); // the first error is the one to report; open() clears it too
        }
        result?;
        self.retire(step)?;
        Ok(target)
    }

    /// Pins the checkpoint of `step`: it is kept until another one is pinned.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails; the old pin then stands.
    pub fn pin(&self, step: u64) -> Result<(), CheckpointError> {
        replace_on(self.disk.as_ref(), &self.dir.join(PIN), |file| writeln!(file, "{step}"))
    }

    /// As the function [`list`].
    ///
    /// # Errors
    /// As the function [`list`].
    pub fn list(&self) -> Result<Vec<Listed>, CheckpointError> {
        list(&self.dir)
    }

    /// As the function [`latest_valid`].
    ///
    /// # Errors
    /// As the function [`latest_valid`].
    pub fn latest_valid(&self) -> Result<Option<Loaded>, CheckpointError> {
        latest_valid(&self.dir)
    }

    fn write_and_commit(
        &self,
        snapshot: &Snapshot,
        step: u64,
        temporary: &Path,
        target: &Path,
    ) -> Result<(), CheckpointError> {
        self.remove_if_there(temporary)?;
        folder::write_folder(self.disk.as_ref(), temporary, snapshot, step)?;
        if target.exists() {
            // Between the two renames the step has no folder; clear_leftovers() takes the old one back after a crash.
            let replaced = self.dir.join(format!("{REPLACED}{}", folder_name(step)));
            self.remove_if_there(&replaced)?;
            self.rename(target, &replaced)?;
        }
        if let Err(error) = self.rename(temporary, target) {
            self.clear_leftovers()?;
            return Err(error);
        }
        self.disk.sync_dir(&self.dir).map_err(CheckpointError::io("sync", &self.dir))
    }

    /// Deletes what the new checkpoint of `step` makes superfluous.
    fn retire(&self, step: u64) -> Result<(), CheckpointError> {
        self.remove_if_there(&self.dir.join(format!("{REPLACED}{}", folder_name(step))))?;
        let pinned = pinned(&self.dir)?.map(|listed| listed.step);
        let (older, later): (Vec<_>, Vec<_>) =
            self.list()?.into_iter().partition(|listed| listed.step <= step);
        for Listed { path, step } in later {
            self.rename(&path, &self.unused_name(&format!("{SUPERSEDED}{}", folder_name(step))))?;
        }
        let surplus = older.len().saturating_sub(self.keep);
        for Listed { path, step } in older.into_iter().take(surplus) {
            if Some(step) != pinned {
                // Renamed first: a crash half-way through the deletion must not leave half a checkpoint to be found.
                let deleting = self.dir.join(format!("{DELETING}{}", folder_name(step)));
                self.remove_if_there(&deleting)?;
                self.rename(&path, &deleting)?;
                self.remove_if_there(&deleting)?;
            }
        }
        Ok(())
    }

    /// Deletes half-written and half-deleted folders; takes a replaced one back when its successor never came.
    fn clear_leftovers(&self) -> Result<(), CheckpointError> {
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            match name.strip_prefix(REPLACED).map(|original| self.dir.join(original)) {
                Some(original) if !original.exists() => self.rename(&path, &original)?,
                Some(_) => self.remove_if_there(&path)?,
                None if name.starts_with(WRITING) || name.starts_with(DELETING) => {
                    self.remove_if_there(&path)?
                }
                None if name.starts_with(&format!(".{PIN}.tmp-")) => self.remove_if_there(&path)?,
                None => {}
            }
        }
        Ok(())
    }

    /// `name` in the folder, with the first number behind it that makes it new.
    fn unused_name(&self, name: &str) -> PathBuf {
        let numbered = (0_u32..).map(|n| self.dir.join(format!("{name}.{n}")));
        numbered.into_iter().find(|path| !path.exists()).unwrap_or_else(|| self.dir.join(name))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CheckpointError> {
        self.disk.rename(from, to).map_err(CheckpointError::io("rename", from))
    }

    fn remove_if_there(&self, path: &Path) -> Result<(), CheckpointError> {
        match self.disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(CheckpointError::io("delete", path)),
        }
    }
}

/// The name of the folder of a step.
fn folder_name(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// The names in a folder that are UTF-8 (ours all are); none when the folder does not exist.
fn names(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CheckpointError::io("read", dir))?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect();
    Ok(names.map_err(CheckpointError::io("read", dir))?.into_iter().flatten().collect())
}
