//! What can end a command before a worker speaks for itself.

use std::path::PathBuf;

use checkpoint::CheckpointError;
use data::DataError;
use data::bench::BenchError;
use data::prepare::PrepareError;
use data::tools::ToolError;
use launch::Exit;

/// Errors of the command, named by what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program that computes is not installed beside this one: build it.
    #[error(
        "{} is missing; build it with `cargo build --release --bins`, or put blip2-worker beside blip2",
        path.display()
    )]
    NoWorker {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The worker was killed before it could answer: try again.
    #[error("blip2-worker was killed while it was asked for {asked}; the system log may say by whom")]
    WorkerKilled {
        /// What it was asked for.
        asked: &'static str,
    },
    /// The folder is not that of a run: name another.
    #[error("{} is no run folder: {detail}", path.display())]
    NoRun {
        /// What was named.
        path: PathBuf,
        /// What it lacks, and what to do.
        detail: String,
    },
    /// No place for downloads is known: set one of the variables.
    #[error("neither XDG_CACHE_HOME nor HOME is set, so there is no place for downloads; set one of them")]
    NoCache,
    /// Processes cannot be started or kept.
    #[error(transparent)]
    Launch(#[from] launch::LaunchError),
    /// Shards cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Shards cannot be made or looked at.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Nothing can be measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Data cannot be fetched or written.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A checkpoint cannot be read, or weights cannot be converted.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl CommandError {
    /// The exit code that says whether trying again may help.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Launch(error) => error.exit(),
            Self::Data(error) | Self::Tool(ToolError::Data(error)) | Self::Bench(BenchError::Data(error))
                if error.is_of_disk_or_server() =>
            {
                Exit::Unavailable
            }
            Self::WorkerKilled { .. }
            | Self::Tool(ToolError::Io { .. })
            | Self::Bench(BenchError::Write { .. })
            | Self::Prepare(PrepareError::Download { .. } | PrepareError::Io { .. })
            | Self::Checkpoint(CheckpointError::Io { .. }) => Exit::Unavailable,
            Self::NoWorker { .. }
            | Self::NoRun { .. }
            | Self::NoCache
            | Self::Data(_)
            | Self::Tool(_)
            | Self::Bench(_)
            | Self::Prepare(_)
            | Self::Checkpoint(_) => Exit::Config,
        }
    }
}
