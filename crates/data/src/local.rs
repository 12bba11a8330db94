//! Shards of this machine, and their scans, kept for the next start.
//!
//! A scan stands beside its shard, as `blip2 data index` would write it; where that folder cannot be written on, in
//! the cache folder under a digest of the shard's path. Either is believed while the shard has the size and time that it had.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::DataError;
use crate::index_file::{SUFFIX, ShardIndex, Stamp, cache_name, path_beside};
use crate::scan::scan;

/// A shard that was written on so shortly before its scan may be written on again at what a file system takes for the
/// same time: its scan is not kept.
const SETTLED: Duration = Duration::from_secs(2);

/// The index of the local shard at `path`: out of a file that fits it, or by a scan. With `cache`, the folder for scans
/// that cannot stand beside their shards, the scan is kept; that neither can be written on costs time alone. Without,
/// nothing is written: who only looks at shards leaves nothing behind.
pub(crate) fn kept_index(path: &Path, cache: Option<&Path>) -> Result<ShardIndex, DataError> {
    let (index, found) = index(path, cache)?;
    if let Some(cache) = cache
        && !found
        && is_settled(&index.stamp)
        && index.write(&path_beside(path)).is_err()
    {
        let in_cache = || index.write(&path_in(cache, path)?);
        let _ = std::fs::create_dir_all(cache).and_then(|()| in_cache());
    }
    Ok(index)
}

/// The index of the local shard at `path`, and whether it came from a file.
pub(crate) fn index(path: &Path, cache: Option<&Path>) -> Result<(ShardIndex, bool), DataError> {
    let (file, metadata) = open(path)?;
    let stamp = Stamp { size: metadata.len(), modified_ns: modified_ns(&metadata), sha256: None };
    let fits =
        |index: &ShardIndex| (index.stamp.size, index.stamp.modified_ns) == (stamp.size, stamp.modified_ns);
    let in_cache = cache.and_then(|cache| path_in(cache, path).ok());
    let mut files = [Some(path_beside(path)), in_cache].into_iter().flatten();
    if let Some(index) = files.find_map(|file| ShardIndex::read(&file).filter(fits)) {
        return Ok((index, true));
    }
    let unreadable = |source| DataError::Unreadable { shard: path.display().to_string(), source };
    Ok((ShardIndex { scan: scan(&file).map_err(unreadable)?, stamp }, false))
}

/// The shard at `path`, open.
pub(crate) fn open(path: &Path) -> Result<(File, Metadata), DataError> {
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let shard = || path.display().to_string();
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DataError::ShardMissing { shard: shard(), source },
        _ => DataError::Unreadable { shard: shard(), source },
    })
}

fn modified_ns(metadata: &Metadata) -> u64 {
    (metadata.mtime() as u64).wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec() as u64)
}

fn is_settled(stamp: &Stamp) -> bool {
    let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(stamp.modified_ns);
    modified.elapsed().is_ok_and(|age| age >= SETTLED)
}

/// Where the cache folder keeps the scan of the shard at `path`.
fn path_in(cache: &Path, path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    Ok(cache.join(cache_name(path.as_os_str().as_encoded_bytes(), SUFFIX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard of one sample whose key is `key`, as old as it must be for its scan to be kept.
    fn write_shard(path: &Path, key: &str, age: u64) {
        let mut shard = tar::Builder::new(Vec::new());
        for kind in ["jpg", "txt"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            shard.append_data(&mut header, format!("{key}.{kind}"), &b""[..]).unwrap();
        }
        std::fs::write(path, shard.into_inner().unwrap()).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn keys(index: &ShardIndex) -> Vec<&str> {
        index.scan.samples.iter().map(|sample| &*sample.key).collect()
    }

    #[test]
    fn a_scan_is_kept_and_made_again_when_its_shard_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("0.tar"), dir.path().join("cache"));
        write_shard(&path, "a", 100);
        assert_eq!(keys(&kept_index(&path, None).unwrap()), ["a"]);
        assert!(!index(&path, None).unwrap().1, "who only looks leaves nothing behind");
        assert_eq!(keys(&kept_index(&path, Some(&cache)).unwrap()), ["a"]);
        assert!(index(&path, None).unwrap().1 && !cache.exists(), "it stands beside its shard");
        // Of the same size, at another time.
        write_shard(&path, "b", 50);
        assert_eq!(keys(&kept_index(&path, Some(&cache)).unwrap()), ["b"]);
        assert!(index(&path, None).unwrap().1);
        // A moment ago: it may be changed again at the same time.
        write_shard(&path, "c", 0);
        assert_eq!(keys(&kept_index(&path, Some(&cache)).unwrap()), ["c"]);
        assert!(!index(&path, None).unwrap().1);
    }

    #[test]
    fn where_nothing_can_be_written_beside_a_shard_its_scan_is_in_the_cache_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("0.tar"), dir.path().join("cache"));
        write_shard(&path, "a", 100);
        // Root writes everywhere, but not in place of a folder.
        std::fs::create_dir(path_beside(&path)).unwrap();
        assert_eq!(keys(&kept_index(&path, Some(&cache)).unwrap()), ["a"]);
        assert!(index(&path, Some(&cache)).unwrap().1 && !index(&path, None).unwrap().1);
        // Nor is it an error that no such folder can be made.
        assert_eq!(keys(&kept_index(&path, Some(&path.join("below"))).unwrap()), ["a"]);
    }
}
