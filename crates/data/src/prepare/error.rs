//! What ends a preparation.

use std::path::PathBuf;

/// Errors of [`crate::prepare`], named by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The program that downloads a package is not installed. Caller: install it, or bring the file by hand.
    #[error(
        "{package} is needed and `{command}` cannot be run: {tool} is not installed or not on PATH; install it, or put \
         {file} into {}", cache.display()
    )]
    ToolMissing {
        /// Name and version of the package.
        package: String,
        /// The program, as a person calls it.
        tool: &'static str,
        /// The command that was tried.
        command: String,
        /// The file that the command would have brought.
        file: &'static str,
        /// Where that file is looked for.
        cache: PathBuf,
    },
    /// A package did not come. Caller: go online and try again, or bring the file by hand.
    #[error(
        "{package} was not downloaded in {attempts} attempt(s) of `{command}`: {output}\nIs this machine online? If not, \
         run that command on one that is and put {file} into {}", cache.display()
    )]
    Download {
        /// Name and version of the package.
        package: String,
        /// The command that failed.
        command: String,
        /// How often it was tried.
        attempts: u32,
        /// The end of what it said.
        output: String,
        /// The file that the command would have brought.
        file: &'static str,
        /// Where that file is looked for.
        cache: PathBuf,
    },
    /// A downloaded file is not the pinned one. Caller: do not use it; the registry or a proxy changed it.
    #[error(
        "{package}: {file} has SHA-256 {found}, pinned is {expected}: the registry or a proxy serves another file"
    )]
    Digest {
        /// Name and version of the package.
        package: String,
        /// The file.
        file: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A package holds something else than its version promises: our bug, as its digest was right.
    #[error("package file {}: {problem}", path.display())]
    Package {
        /// The downloaded file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A Debian package cannot be unpacked here. Caller: install dpkg.
    #[error("{} cannot be unpacked: `{tool}` is not installed or not on PATH; install dpkg", path.display())]
    UnpackerMissing {
        /// The downloaded file.
        path: PathBuf,
        /// The program.
        tool: String,
    },
    /// The disk refused. Caller: look at the path and the disk, then run again; what is whole is kept.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl PrepareError {
    /// Names an input or output error by what was tried on which path.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
