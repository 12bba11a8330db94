//! The folder of copies. All of its state is file names, so ranks, runs and crashes may share it.
//!
//! `U.json` notes the version of the URL with digest U that was fetched last; `V.tar` is the object of URL and version
//! with digest V, `V.index` its scan; `U.part` (with `U.part.json`) is a download that is not finished; `U.lock` is
//! held while it goes on.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::index_file::hex;
use crate::location::Url;

/// Which version of an object a file holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// An ETag, or what stands in for one; empty when the server has neither.
    pub(super) version: String,
}

impl Note {
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    max_bytes: u64,
}

impl Cache {
    pub(super) fn open(dir: &Path, max_bytes: u64) -> Result<Self, DataError> {
        let unwritable = |source| DataError::Unwritable { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(unwritable)?;
        Ok(Self { dir: dir.to_owned(), max_bytes })
    }

    fn path(&self, parts: &[&str], suffix: &str) -> PathBuf {
        // Parts cannot run into each other: no URL and no header holds a zero byte.
        self.dir.join(hex(&Sha256::digest(parts.join("\0").as_bytes())[..16]) + suffix)
    }

    pub(super) fn shard_path(&self, url: &Url, version: &str) -> PathBuf {
        self.path(&[url.full(), version], ".tar")
    }

    pub(super) fn index_path(&self, url: &Url, version: &str) -> PathBuf {
        self.path(&[url.full(), version], ".index")
    }

    pub(super) fn part_paths(&self, url: &Url) -> (PathBuf, PathBuf) {
        (self.path(&[url.full()], ".part"), self.path(&[url.full()], ".part.json"))
    }

    /// The object, open, if it is here; from now on it counts as used.
    pub(super) fn shard(&self, url: &Url, version: &str) -> Option<File> {
        let file = File::open(self.shard_path(url, version)).ok()?;
        // The time of a file is the cache's order of use, nothing else; if it cannot be set, the file goes earlier.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    pub(super) fn note(&self, url: &Url) -> Option<Note> {
        Note::read(&self.path(&[url.full()], ".json"))
    }

    pub(super) fn write_note(&self, url: &Url, note: &Note) -> Result<(), DataError> {
        let path = self.path(&[url.full()], ".json");
        note.write(&path).map_err(|source| DataError::Unwritable { path, source })
    }

    /// Waits until nobody else on this machine fetches `url`; dropping the file lets the next one in.
    pub(super) fn lock(&self, url: &Url) -> Result<File, DataError> {
        self.hold(self.path(&[url.full()], ".lock"))
    }

    fn hold(&self, path: PathBuf) -> Result<File, DataError> {
        let held = File::create(&path).and_then(|file| file.lock().map(|()| file));
        held.map_err(|source| DataError::Unwritable { path, source })
    }

    /// Drops the objects that were not opened for the longest time until `needed` more bytes fit.
    pub(super) fn make_room(&self, needed: u64) -> Result<(), String> {
        if needed > self.max_bytes {
            return Err(format!(
                "the shard has {needed} bytes and the cache may hold {}; give it more",
                self.max_bytes
            ));
        }
        let _lock = self.hold(self.dir.join("room.lock")).map_err(|error| error.to_string())?;
        let mut objects = self.objects().map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let mut used: u64 = objects.iter().map(|(_, metadata)| metadata.len()).sum();
        objects.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "tar"));
        objects.sort_by_key(|(path, metadata)| (metadata.modified().ok(), path.clone()));
        for (path, metadata) in objects {
            if used.saturating_add(needed) <= self.max_bytes {
                break;
            }
            // Somebody may read it: the file goes when the last reader closes it.
            if std::fs::remove_file(&path).is_ok() {
                used -= metadata.len();
            }
        }
        Ok(())
    }

    /// Objects, whole and begun.
    fn objects(&self) -> io::Result<Vec<(PathBuf, Metadata)>> {
        let mut objects = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "tar" || extension == "part")
                && let Ok(metadata) = entry.metadata()
            {
                objects.push((path, metadata));
            }
        }
        Ok(objects)
    }
}
