//! What launchers and the coordinator tell each other.

use serde::{Deserialize, Serialize};

use crate::Exit;
use crate::standing::Standing;

/// A launcher's first word, once it has shown that it holds the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    /// Version of this program.
    pub version: String,
    /// Name of the run folder.
    pub run_id: String,
    /// Digest of the workers' arguments.
    pub args: String,
    pub nnodes: usize,
    /// The number that the user or the scheduler gave this node.
    pub node_rank: Option<usize>,
    /// Workers that it will start.
    pub nproc: usize,
}

/// What a launcher says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromNode {
    Hello(Hello),
    /// Still there.
    Beat,
    /// A worker of this generation failed, and its node ends the others. `lost_peer` where it only says that another
    /// one is gone.
    Failed {
        generation: u32,
        rank: usize,
        code: u8,
        lost_peer: bool,
    },
    /// All workers of this generation have ended, the furthest checkpoint that one of them wrote.
    Ended {
        generation: u32,
        code: u8,
        saved: u64,
    },
    /// How far the node's workers of this generation have come.
    Stands {
        generation: u32,
        standing: Standing,
    },
    /// Somebody asked this launcher for a stop, with this signal.
    Stop {
        signal: i32,
    },
}

/// What the coordinator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromCoordinator {
    /// It has taken in this launcher.
    Welcome,
    /// It will not have this launcher: why. `later` where another try may be taken.
    Refused { detail: String, later: bool },
    /// Still there.
    Beat,
    /// Start the workers.
    Form(Place),
    /// Node 0 has no port where the ranks could meet: why.
    NoPort { detail: String },
    /// A worker somewhere has failed: end those of this generation.
    End { generation: u32 },
    /// Ask the workers for a stop.
    Stop { signal: i32 },
    /// How far the other nodes have come; `None` where none of them is to be waited for, as far as is known.
    Others { generation: u32, standing: Option<Standing> },
    /// A generation is over, or the whole run: which rank was the first to fail. `code` for the whole run.
    Over { generation: u32, cause: Option<usize>, code: Option<u8> },
}

/// A node's place in a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub generation: u32,
    pub node_rank: usize,
    pub nnodes: usize,
    /// Rank of the node's first worker.
    pub first_rank: usize,
    pub world_size: usize,
    /// Where rank 0 listens.
    pub master_addr: String,
    pub master_port: u16,
}

/// A code that came over the wire; what is outside the contract is an accident.
pub(crate) fn exit_of(code: u8) -> Exit {
    Exit::from_code(code.into()).unwrap_or(Exit::Unavailable)
}
