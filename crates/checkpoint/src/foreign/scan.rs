//! Little-endian numbers off a stream whose length is known.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::CheckpointError;

/// A stream of `len` bytes, read front to back. A count that runs past the end is refused before it is allocated.
pub(super) struct Scan<R> {
    reader: R,
    path: PathBuf,
    pos: u64,
    len: u64,
}

impl<R: Read + Seek> Scan<R> {
    /// Reads from the current position of `reader`, which has `len` bytes in front of it; `path` is for errors.
    pub(super) fn new(reader: R, path: &Path, len: u64) -> Self {
        Self { reader, path: path.to_path_buf(), pos: 0, len }
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        self.len - self.pos
    }

    /// This file is not what its kind promises.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::malformed(&self.path, format!("{} (near byte {})", reason.into(), self.pos))
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    /// The next `count` bytes; `count` may come from the file.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, CheckpointError> {
        self.claim(count)?;
        let size = usize::try_from(count).map_err(|_| self.malformed("a count does not fit this machine"))?;
        let mut bytes = vec![0; size];
        self.reader.read_exact(&mut bytes).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    /// The next `count` bytes as UTF-8.
    pub(super) fn text(&mut self, count: u64) -> Result<String, CheckpointError> {
        let bytes = self.bytes(count)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("a string is not UTF-8"))
    }

    /// Bytes up to a line feed, without it, as UTF-8; at most `limit` of them.
    pub(super) fn line(&mut self, limit: usize) -> Result<String, CheckpointError> {
        let mut bytes = Vec::new();
        loop {
            match self.array::<1>()? {
                [b'\n'] => break,
                _ if bytes.len() == limit => {
                    return Err(self.malformed(format!("a name exceeds {limit} bytes")));
                }
                [byte] => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.malformed("a name is not UTF-8"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, CheckpointError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Goes past `count` bytes.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), CheckpointError> {
        self.claim(count)?;
        let step = i64::try_from(count).map_err(|_| self.malformed("a count does not fit this machine"))?;
        self.reader.seek(SeekFrom::Current(step)).map(|_| ()).map_err(|source| self.failed(source))
    }

    /// Takes `count` bytes off what is left.
    fn claim(&mut self, count: u64) -> Result<(), CheckpointError> {
        if count > self.left() {
            let reason = format!("{count} bytes wanted, {} left: truncated, or a count lies", self.left());
            return Err(self.malformed(reason));
        }
        self.pos += count;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Io { action: "read", path: self.path.clone(), source }
    }
}
