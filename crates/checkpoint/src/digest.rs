//! BLAKE3 for every 4 MiB of a file: taken while it is written, checked before it is used, so that an error can say
//! which part of which file is damaged.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CheckpointError;
use crate::disk::DiskFile;

/// Bytes under one digest.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Size and digests of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of each [`CHUNK_BYTES`] of it in hexadecimal; the last chunk may be shorter.
    pub blake3: Vec<String>,
}

/// Passes bytes on to a file and takes their digests on the way.
pub(crate) struct HashingWriter {
    file: Box<dyn DiskFile>,
    chunk: blake3::Hasher,
    chunk_bytes: usize,
    digest: FileDigest,
}

impl HashingWriter {
    pub(crate) fn new(file: Box<dyn DiskFile>) -> Self {
        Self { file, chunk: blake3::Hasher::new(), chunk_bytes: 0, digest: FileDigest::default() }
    }

    /// Returns the digests once the bytes are on the disk.
    pub(crate) fn finish(mut self) -> io::Result<FileDigest> {
        if self.chunk_bytes > 0 {
            self.close_chunk();
        }
        self.file.sync()?;
        Ok(self.digest)
    }

    fn close_chunk(&mut self) {
        self.digest.blake3.push(self.chunk.finalize().to_hex().to_string());
        self.chunk.reset();
        self.chunk_bytes = 0;
    }
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Never more than the chunk has room for: the caller's `write_all` comes back with the rest.
        let room = bytes.len().min(CHUNK_BYTES - self.chunk_bytes);
        let written = self.file.write(&bytes[..room])?;
        self.chunk.update(&bytes[..written]);
        self.chunk_bytes += written;
        self.digest.bytes += written as u64;
        if self.chunk_bytes == CHUNK_BYTES {
            self.close_chunk();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Compares a file with what was recorded of it; stops at the first chunk that differs.
///
/// # Errors
/// [`CheckpointError::Damaged`] naming the chunk, [`CheckpointError::Io`] when the file cannot be read.
pub(crate) fn verify_file(path: &Path, recorded: &FileDigest) -> Result<(), CheckpointError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CheckpointError::damaged(path, "the file is missing"));
        }
        opened => opened.map_err(CheckpointError::io("open", path))?,
    };
    let bytes = file.metadata().map_err(CheckpointError::io("read", path))?.len();
    if bytes != recorded.bytes {
        let reason = format!("{bytes} bytes where the manifest says {}", recorded.bytes);
        return Err(CheckpointError::damaged(path, reason));
    }
    if recorded.blake3.len() as u64 != bytes.div_ceil(CHUNK_BYTES as u64) {
        let reason = format!("the manifest holds {} digests for {bytes} bytes", recorded.blake3.len());
        return Err(CheckpointError::damaged(path, reason));
    }
    let mut chunk = Vec::with_capacity(CHUNK_BYTES.min(usize::try_from(bytes).unwrap_or(CHUNK_BYTES)));
    for (index, expected) in recorded.blake3.iter().enumerate() {
        chunk.clear();
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
        read.map_err(CheckpointError::io("read", path))?;
        if blake3::hash(&chunk).to_hex().as_str() != expected {
            let start = index * CHUNK_BYTES;
            let reason =
                format!("chunk {index} (bytes {start}..{}) differs from its digest", start + chunk.len());
            return Err(CheckpointError::damaged(path, reason));
        }
    }
    Ok(())
}
