//! What can go wrong here, named by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. None of them is a reason to stop a training run: [`crate::Metrics`] counts them and goes on.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A file could not be read: the caller gives up on it, or starts a new one.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written (disk full, folder gone): the caller frees room and tries again.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there but is not what its name says: it has to be made again.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that makes no sense.
        offset: u64,
        /// What was expected there.
        reason: String,
    },
    /// A JSON document does not have the fields that it should have.
    #[error("{path} does not have the expected fields")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what, in the words of the parser.
        source: serde_json::Error,
    },
}

impl MonitorError {
    /// Wraps an IO error of reading `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    /// Wraps an IO error of writing `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    /// Wraps a JSON error of `path`.
    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }
}
