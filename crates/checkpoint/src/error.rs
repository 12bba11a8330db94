//! The one error of this crate; a variant is named by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint or a weight file could not be written, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The disk said no (full, read-only, gone). Training can go on; the next save may succeed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: "write", "rename to", "read".
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file is not what its kind promises (damaged, hostile, or another format): use another file.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The refused file.
        path: PathBuf,
        /// The first broken promise.
        reason: String,
    },
    /// A checkpoint's bytes differ from its manifest: use an older checkpoint.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file whose bytes differ.
        path: PathBuf,
        /// The chunk that differs and where it lies, or how the size differs.
        reason: String,
    },
    /// There are checkpoints, and none of them can be trusted: restore one from elsewhere, or start anew.
    #[error("no valid checkpoint in {}: {}", dir.display(), problems.join("; "))]
    NoneValid {
        /// The folder that was searched.
        dir: PathBuf,
        /// One line for each refused checkpoint, newest first.
        problems: Vec<String>,
    },
    /// A tensor was asked for as something it is not: the caller's names or types are wrong.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Name of the tensor, or "" where it has none.
        name: String,
        /// What was asked and what is there.
        reason: String,
    },
}

impl CheckpointError {
    /// Wraps an operating system error with the path and the verb; for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A file that breaks its format.
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_path_buf(), reason: reason.into() }
    }

    /// A file that differs from its manifest.
    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), reason: reason.into() }
    }
}
