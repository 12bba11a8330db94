//! What can end a run, named by what the caller can do about it.

use std::path::PathBuf;

use launch::Exit;

/// Why a worker stopped before its work was done.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file that the run needs cannot be read: name another, or make it.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the run cannot be written: free the disk, then launch again.
    #[error("{path} cannot be written: {source}", path = path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The config does not describe a run: mend it.
    #[error("{path}: {detail}", path = path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Key, line and remedy.
        detail: String,
    },
    /// Weights are missing, misshapen or of another model: name others.
    #[error("weights {path}: {detail}", path = path.display())]
    Weights {
        /// Which folder or file.
        path: PathBuf,
        /// Every key that is missing, unexpected or misshapen.
        detail: String,
    },
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A checkpoint cannot be read or the run folder is busy.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// Another rank is gone: restart the generation.
    #[error(transparent)]
    Peer(#[from] collectives::CommError),
    /// The environment does not say who this process is.
    #[error(transparent)]
    Launch(#[from] launch::LaunchError),
    /// Somebody asked for a stop; a checkpoint was written.
    #[error("stopped at step {step} of {phase}, with a checkpoint; launch again to go on")]
    Stopped {
        /// Which phase.
        phase: String,
        /// Steps done.
        step: u64,
    },
    /// Somebody asked for a stop where there is nothing to save: what was begun is done again.
    #[error("stopped during {phase}; every checkpoint is kept; launch again to go on")]
    Interrupted {
        /// Which phase.
        phase: String,
    },
    /// Ranks do not find the same on what should be one disk: it may be slow to tell, so trying again may help.
    #[error("{path}: {detail}", path = path.display())]
    NotShared {
        /// Which file or folder.
        path: PathBuf,
        /// Who finds what.
        detail: String,
    },
    /// Another rank could not write the checkpoint that was to be the last thing here: free the disk, then launch again.
    #[error("{dir}: another rank could not write the checkpoint; its log says why", dir = dir.display())]
    NotSaved {
        /// The phase's checkpoints.
        dir: PathBuf,
    },
    /// Loss or gradient is no number, or leaps, for too long: another learning rate or dtype is needed.
    #[error(
        "{steps} steps of {phase} in a row had to be left out, up to step {step}, after {roll_backs} returns to a \
         checkpoint; lower peak_lr, use fp32, or look at the samples in skipped_steps.jsonl"
    )]
    Lost {
        /// Which phase.
        phase: String,
        /// Steps done.
        step: u64,
        /// How many in a row.
        steps: u64,
        /// Earlier returns to a checkpoint.
        roll_backs: u64,
    },
    /// Ranks that this program started for a comparison or a measurement failed: look at what they said.
    #[error("the ranks did not end well: {detail}")]
    Ranks {
        /// What the first that failed means by its exit code.
        exit: Exit,
        /// The launcher's lines, and the last one of each rank.
        detail: String,
    },
    /// A reference case is not met.
    #[error("{0}")]
    Verify(String),
}

impl TrainError {
    /// The exit code that the launcher and the schedulers read.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { source, .. } if is_passing(source) => Exit::Unavailable,
            Self::Read { .. } | Self::Config { .. } | Self::Weights { .. } => Exit::Config,
            Self::Data(data::DataError::TooManySkipped { .. } | data::DataError::ShardsLost { .. })
            | Self::Lost { .. } => Exit::GiveUp,
            Self::Data(data::DataError::Worker { .. }) => Exit::Unavailable,
            Self::Data(error) if error.is_of_disk_or_server() => Exit::Unavailable,
            Self::Data(_) | Self::Verify(_) => Exit::Config,
            Self::Checkpoint(checkpoint::CheckpointError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Exit::Config
            }
            Self::Checkpoint(checkpoint::CheckpointError::Io { .. }) => Exit::Unavailable,
            Self::Checkpoint(_) => Exit::Config,
            Self::Launch(error) => error.exit(),
            Self::Ranks { exit, .. } => *exit,
            Self::Peer(collectives::CommError::Unsupported { .. }) => Exit::Config,
            Self::Write { .. } | Self::NotShared { .. } | Self::NotSaved { .. } | Self::Peer(_) => {
                Exit::Unavailable
            }
            Self::Stopped { .. } | Self::Interrupted { .. } => Exit::Stopped,
        }
    }
}

/// A disk or network that fails now may not fail later; a file that is missing stays so.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        Interrupted, NetworkDown, NetworkUnreachable, ResourceBusy, StaleNetworkFileHandle, TimedOut,
    };
    /// The disk could not read (EIO): `std::io::ErrorKind` has no name for it.
    const EIO: i32 = 5;
    matches!(
        error.kind(),
        Interrupted | NetworkDown | NetworkUnreachable | ResourceBusy | StaleNetworkFileHandle | TimedOut
    ) || error.raw_os_error() == Some(EIO)
}
