//! Writing so that a crash leaves the old content or the whole new one: a temporary sibling, fsync, rename, fsync of
//! the folder.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::CheckpointError;
use crate::disk::{Disk, RealDisk};

/// Writes `bytes` to `path` so that after a crash the old file or the whole new one is there.
///
/// # Errors
/// [`CheckpointError::Io`] when the disk fails; the old file is then untouched.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    replace_durably(path, |file| file.write_all(bytes))
}

/// As [`write_durably`], with the content streamed by `fill`.
pub(crate) fn replace_durably(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    replace_on(&RealDisk, path, fill)
}

/// As [`replace_durably`], on a disk of the caller's choice.
pub(crate) fn replace_on(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let temporary = temporary_sibling(path);
    let write = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, disk.create(&temporary)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync()?;
        disk.rename(&temporary, path)?;
        disk.sync_dir(parent_of(path))
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
        CheckpointError::Io { action: "write", path: path.to_path_buf(), source }
    })
}

/// The folder of `path`; "." for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name beside `path` that no other process and no other call of this one uses.
fn temporary_sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".tmp-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_durably(&path, b"old").unwrap();
        write_durably(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        let failed = replace_durably(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(matches!(failed, Err(CheckpointError::Io { action: "write", .. })));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays behind");
    }
}
