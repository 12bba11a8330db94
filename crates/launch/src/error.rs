//! What can go wrong before, around and between the workers, named by what the caller can do.

use std::error::Error;
use std::path::PathBuf;

use crate::Exit;

/// Why processes could not be started, told apart or ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The environment does not say who this process is: mend the variables it names.
    #[error("{detail}")]
    Environment {
        /// Which variables, with their values, and what was expected.
        detail: String,
    },
    /// The arguments of a launch make no sense together: mend them.
    #[error("{detail}")]
    Arguments {
        /// Which argument, and what it may be.
        detail: String,
    },
    /// The launcher ended before this worker was ready: launch again.
    #[error("the launcher (process {launcher_pid}) is gone, so this worker ends too; launch again")]
    ParentGone {
        /// Process id of the launcher that started this worker.
        launcher_pid: i32,
    },
    /// A worker program cannot be started: build or install it.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A log or report cannot be written: free the disk or mend the rights, then launch again.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Another process holds the run folder: wait for it, or name another folder.
    #[error("run folder {} is in use by process {pid} on {host}; wait for it, or name another run.dir", run_dir.display())]
    Busy {
        /// The run folder.
        run_dir: PathBuf,
        /// Where the other one runs.
        host: String,
        /// Its process id.
        pid: u32,
    },
    /// The launchers of several nodes do not meet.
    #[error("{detail}")]
    Meeting {
        /// Where, how long it was tried, what answered, what to look at.
        detail: String,
        /// Trying again changes nothing: something must be mended.
        mendable: bool,
    },
    /// The operating system refused something that processes need (a signal handler, a port, a thread).
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried, as a verb.
        action: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl LaunchError {
    /// The exit code that says whether trying again may help.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Environment { .. } | Self::Arguments { .. } | Self::Meeting { mendable: true, .. } => {
                Exit::Config
            }
            Self::Busy { .. } => Exit::Busy,
            Self::Meeting { .. }
            | Self::ParentGone { .. }
            | Self::Spawn { .. }
            | Self::Write { .. }
            | Self::System { .. } => Exit::Unavailable,
        }
    }
}

/// The error in one line, with what lies behind it: what a program says before it ends.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some messages already carry what lies behind them.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line
}
