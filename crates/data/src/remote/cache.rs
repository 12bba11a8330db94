//! The folder of copies. All of its state is file names, so ranks, runs and crashes may share it.
//!
//! `U.json` notes the version of the URL with digest U that was fetched last; `V.tar` is the object of URL and version
//! with digest V, `V.index` its scan; `U.part` (with `U.part.json`) is a download that is not finished; `U.lock` is
//! held while it goes on. Objects, downloads and scans are bounded together; notes and locks are not: some sixty bytes
//! for each URL.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::DataError;
use crate::index_file::cache_name;
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
        self.dir.join(cache_name(parts.join("\0").as_bytes(), suffix))
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

    /// Drops what was not used for the longest time until `needed` more bytes fit: objects with their scans, and
    /// downloads that nobody goes on with.
    pub(super) fn make_room(&self, needed: u64) -> Result<(), String> {
        if needed > self.max_bytes {
            return Err(format!(
                "the shard has {needed} bytes and the cache may hold {}; give it more",
                self.max_bytes
            ));
        }
        let _lock = self.hold(self.dir.join("room.lock")).map_err(|error| error.to_string())?;
        let mut files = self.files().map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let mut used: u64 = files.values().map(Metadata::len).sum();
        let goes_with_its_object =
            |path: &Path| has_extension(path, "index") && files.contains_key(&path.with_extension("tar"));
        let mut droppable: Vec<(SystemTime, PathBuf)> = files
            .iter()
            .filter(|(path, _)| !goes_with_its_object(path))
            .map(|(path, metadata)| (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), path.clone()))
            .collect();
        droppable.sort();
        for (_, path) in droppable {
            if used.saturating_add(needed) <= self.max_bytes {
                break;
            }
            // Asked of what would go alone: it takes the file's lock.
            if has_extension(&path, "part") && !is_abandoned(&path) {
                continue;
            }
            // With an object goes its scan, with a download the note of its version. Somebody may read the object: its
            // bytes go when the last reader closes it.
            for path in [path.with_extension("index"), path.with_extension("part.json"), path] {
                if std::fs::remove_file(&path).is_ok() {
                    used -= files.remove(&path).map_or(0, |metadata| metadata.len());
                }
            }
        }
        Ok(())
    }

    /// What takes room: objects, whole and begun, and scans.
    fn files(&self) -> io::Result<HashMap<PathBuf, Metadata>> {
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if ["tar", "part", "index"].iter().any(|extension| has_extension(&path, extension))
                && let Ok(metadata) = entry.metadata()
            {
                files.insert(path, metadata);
            }
        }
        Ok(files)
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Whether nobody fetches what `part` is the beginning of; who does holds its lock.
fn is_abandoned(part: &Path) -> bool {
    match File::open(part.with_extension("lock")) {
        Ok(lock) => lock.try_lock().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn write(cache: &Cache, name: &str, bytes: usize, age: u64) {
        let path = cache.dir.join(name);
        std::fs::write(&path, vec![0; bytes]).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    fn names(cache: &Cache) -> Vec<String> {
        let entries = std::fs::read_dir(&cache.dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "room.lock");
        names.sort();
        names
    }

    #[test]
    fn room_is_made_of_all_that_takes_room_and_a_download_that_goes_on_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1000).unwrap();
        write(&cache, "gone.part", 300, 50);
        write(&cache, "gone.part.json", 2, 50);
        write(&cache, "gone.lock", 0, 50);
        write(&cache, "going.part", 200, 60);
        write(&cache, "going.part.json", 2, 60);
        let _going = cache.hold(cache.dir.join("going.lock")).unwrap();
        write(&cache, "old.tar", 200, 40);
        write(&cache, "old.index", 50, 70);
        write(&cache, "lone.index", 50, 65);
        write(&cache, "new.tar", 150, 10);
        write(&cache, "new.index", 20, 80);
        cache.make_room(0).unwrap();
        assert!(names(&cache).contains(&"lone.index".into()), "970 bytes fit");
        cache.make_room(50).unwrap();
        let left = names(&cache);
        assert!(!left.contains(&"lone.index".into()) && left.contains(&"gone.part".into()), "{left:?}");
        cache.make_room(500).unwrap();
        let left = ["going.lock", "going.part", "going.part.json", "gone.lock", "new.index", "new.tar"];
        assert_eq!(names(&cache)[..], left[..]);
        assert!(cache.make_room(1001).is_err());
    }
}
