//! What can go wrong between ranks.

use std::fmt;

use torch_bridge::BridgeError;

/// What the ranks were doing together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Meeting for the first time.
    Rendezvous,
    /// [`crate::ProcessGroup::all_reduce_sum`].
    AllReduce,
    /// [`crate::ProcessGroup::all_gather`].
    AllGather,
    /// [`crate::ProcessGroup::all_to_all`].
    AllToAll,
    /// [`crate::ProcessGroup::broadcast`].
    Broadcast,
    /// [`crate::ProcessGroup::barrier`].
    Barrier,
    /// [`crate::GradientReducer::reduce`].
    Reduce,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Rendezvous => "rendezvous",
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Reduce => "gradient reduction",
        })
    }
}

/// Why ranks could not talk, named by what the caller can do. `detail` is libtorch's own text.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Another process ended: the first that failed says why; restart all ranks.
    #[error("rank {rank}: a peer is gone during {operation}: {detail}")]
    PeerGone {
        /// This rank.
        rank: usize,
        /// Doing what.
        operation: Operation,
        /// Which connection.
        detail: String,
    },
    /// Another process did not come, or hangs: look at it, then restart all ranks.
    #[error("rank {rank}: a peer did not answer in time during {operation}: {detail}")]
    TimedOut {
        /// This rank.
        rank: usize,
        /// Doing what.
        operation: Operation,
        /// How long, and for whom.
        detail: String,
    },
    /// Rank 0 cannot be met there: set another `MASTER_ADDR` or `MASTER_PORT`.
    #[error("rank {rank}: {address} is no place to meet: {detail}; check MASTER_ADDR and MASTER_PORT")]
    Address {
        /// This rank.
        rank: usize,
        /// Host and port.
        address: String,
        /// Why, and who is in the way.
        detail: String,
    },
    /// Nobody answers at the meeting place: rank 0 does not run, or the name or network leads elsewhere.
    #[error(
        "rank {rank}: no rank 0 at {address} within {seconds} s: {detail}; check MASTER_ADDR and MASTER_PORT, and that \
         rank 0 runs and no firewall is in between"
    )]
    Unreachable {
        /// This rank.
        rank: usize,
        /// Host and port as they were given.
        address: String,
        /// For how long it was tried.
        seconds: u64,
        /// Addresses of the name, what became of each, and this machine's own.
        detail: String,
    },
    /// The device has no room for what is sent or received: lower the batch size.
    #[error("rank {rank}: no memory for {operation}: {detail}")]
    OutOfMemory {
        /// This rank.
        rank: usize,
        /// Doing what.
        operation: Operation,
        /// How much was asked for.
        detail: String,
    },
    /// This build cannot talk between such devices: install the other libtorch.
    #[error("rank {rank}: {detail}")]
    Unsupported {
        /// This rank.
        rank: usize,
        /// What is missing.
        detail: String,
    },
    /// Gloo, NCCL or the store failed otherwise: restart all ranks; if it comes again it is an error in our code.
    #[error("rank {rank}: {operation} failed: {detail}")]
    Backend {
        /// This rank.
        rank: usize,
        /// Doing what.
        operation: Operation,
        /// Why.
        detail: String,
    },
}

impl CommError {
    /// Other ranks are the matter, so that meeting them again may help.
    #[must_use]
    pub fn is_of_peers(&self) -> bool {
        match self {
            Self::PeerGone { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Address { .. }
            | Self::Backend { .. } => true,
            Self::OutOfMemory { .. } | Self::Unsupported { .. } => false,
        }
    }

    pub(crate) fn new(rank: usize, operation: Operation, error: BridgeError) -> Self {
        match error {
            BridgeError::PeerGone(detail) => Self::PeerGone { rank, operation, detail },
            BridgeError::TimedOut(detail) => Self::TimedOut { rank, operation, detail },
            BridgeError::OutOfMemory(detail) => Self::OutOfMemory { rank, operation, detail },
            BridgeError::Unsupported(_) => Self::Unsupported { rank, detail: error.to_string() },
            BridgeError::Store(_) | BridgeError::Backend(_) | BridgeError::Torch(_) => {
                Self::Backend { rank, operation, detail: error.to_string() }
            }
        }
    }
}
