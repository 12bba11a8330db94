//! Writing shards: a tar that appears whole under its name or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A shard that is being written, under a temporary name beside its own.
pub struct ShardWriter {
    path: PathBuf,
    tar: tar::Builder<BufWriter<NamedTempFile>>,
}

impl ShardWriter {
    /// Starts the shard that is to be `path`, whose folder is there.
    pub fn create(path: &Path) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mode = std::fs::Permissions::from_mode(0o644);
        let file = tempfile::Builder::new().prefix(".shard-").permissions(mode).tempfile_in(dir)?;
        let tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { path: path.to_owned(), tar })
    }

    /// Adds one member. The same members give the same bytes on any machine.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        self.tar.append_data(&mut header, name, bytes)
    }

    /// Makes the shard durable and gives it its name.
    pub fn finish(self) -> io::Result<PathBuf> {
        let mut buffered = self.tar.into_inner()?;
        buffered.flush()?;
        let file: NamedTempFile = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let _: File = file.persist(&self.path).map_err(|error| error.error)?;
        Ok(self.path)
    }
}
