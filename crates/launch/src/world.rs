//! Who this process is among the processes of its run.

use std::fmt;

use crate::call::Call;
use crate::environment;
use crate::error::LaunchError;
use crate::slurm;

/// Our launcher sets this to its process id, so that a worker knows whom to die with.
pub(crate) const LAUNCHER_PID: &str = "BLIP2_LAUNCHER_PID";
/// Our launcher sets this for a process that is to take the place of a rank that dies.
pub(crate) const SPARE: &str = "BLIP2_SPARE";
/// The loopback address, where all ranks of one node meet by default.
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// Which environment named this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `blip2 launch` started it.
    Launcher {
        /// Process id of the launcher.
        pid: i32,
    },
    /// `blip2 launch` started it to take the place of a rank that dies; until it is called its rank means nothing.
    Spare {
        /// Process id of the launcher.
        pid: i32,
    },
    /// torchrun, Kubeflow, or anything that sets `RANK` and `WORLD_SIZE`.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// SLURM's `srun`.
    Slurm,
    /// Nobody: a process on its own.
    Single,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launcher { pid } => write!(out, "blip2 launch (process {pid})"),
            Self::Spare { pid } => write!(out, "blip2 launch (process {pid}), as a spare"),
            Self::Torchrun => out.write_str("RANK and WORLD_SIZE"),
            Self::OpenMpi => out.write_str("OMPI_COMM_WORLD_*"),
            Self::Slurm => out.write_str("SLURM_PROCID"),
            Self::Single => out.write_str("no launcher: a single process"),
        }
    }
}

/// Rank, world size and meeting place of this process, in torchrun's words and with torchrun's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Number of this process among all, from 0.
    pub rank: usize,
    /// Number of this process on its node, from 0; names its GPU.
    pub local_rank: usize,
    /// Processes in all.
    pub world_size: usize,
    /// Processes on this node.
    pub local_world_size: usize,
    /// Number of this node, from 0.
    pub node_rank: usize,
    /// Host or address where rank 0 listens.
    pub master_addr: String,
    /// Port where rank 0 listens; 0 in a world of one, which meets nobody.
    pub master_port: u16,
    /// How many times the set of ranks was formed before this time.
    pub generation: u64,
    /// Where all this was read.
    pub source: Source,
}

impl World {
    /// A process on its own.
    #[must_use]
    pub fn single() -> Self {
        Self {
            rank: 0,
            local_rank: 0,
            world_size: 1,
            local_world_size: 1,
            node_rank: 0,
            master_addr: LOOPBACK.into(),
            master_port: 0,
            generation: 0,
            source: Source::Single,
        }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`LaunchError::Environment`] naming the variables that are missing or contradict each other.
    pub fn from_env() -> Result<Self, LaunchError> {
        Self::from_vars(&environment::read)
    }

    /// Reads variables given by `vars`: `RANK` (torchrun's words) first, then Open MPI's, then SLURM's; without any of
    /// them the process is alone. SLURM needs `SLURM_STEP_ID` too, because a batch script or an `salloc` shell has
    /// `SLURM_PROCID` without being one of the tasks.
    ///
    /// # Errors
    /// As [`World::from_env`].
    pub fn from_vars(vars: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let vars = Vars(vars);
        let world = if vars.has("RANK") {
            torchrun(vars)?
        } else if vars.has("OMPI_COMM_WORLD_RANK") {
            open_mpi(vars)?
        } else if vars.has("SLURM_PROCID") && vars.has("SLURM_STEP_ID") {
            slurm::world(vars)?
        } else {
            refuse_lone_world_size(vars)?;
            Self::single()
        };
        world.check()
    }

    /// This process in the generation to which its launcher, the only one of the run, calls it.
    #[must_use]
    pub fn called(&self, call: Call) -> Self {
        let rank = usize::from(call.rank);
        let (generation, master_port) = (u64::from(call.generation), call.port);
        let source = match self.source {
            Source::Spare { pid } => Source::Launcher { pid },
            other => other,
        };
        Self { rank, local_rank: rank, generation, master_port, source, ..self.clone() }
    }

    /// Refuses numbers that contradict each other, before N processes wait for a rank that does not exist.
    fn check(self) -> Result<Self, LaunchError> {
        let words = match self.source {
            Source::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
            Source::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
            Source::Launcher { .. } | Source::Spare { .. } | Source::Torchrun | Source::Single => {
                ["RANK", "WORLD_SIZE"]
            }
        };
        let local_words = match self.source {
            Source::OpenMpi => ["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
            Source::Slurm => ["SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
            Source::Launcher { .. } | Source::Spare { .. } | Source::Torchrun | Source::Single => {
                ["LOCAL_RANK", "LOCAL_WORLD_SIZE"]
            }
        };
        below(words, self.rank, self.world_size)?;
        below(local_words, self.local_rank, self.local_world_size)?;
        if self.local_world_size > self.world_size {
            return refuse(format!(
                "{}={} is more than {}={}; a node cannot hold more processes than the run has",
                local_words[1], self.local_world_size, words[1], self.world_size
            ));
        }
        if self.world_size > 1 && self.master_port == 0 {
            return refuse(
                "MASTER_PORT=0 is no port that ranks can meet at; set MASTER_PORT to a free one".into(),
            );
        }
        Ok(self)
    }
}

/// torchrun's contract, which our launcher keeps too.
fn torchrun(vars: Vars<'_>) -> Result<World, LaunchError> {
    let rank = vars.need("RANK", "RANK")?;
    let world_size = vars.need("WORLD_SIZE", "RANK")?;
    // Kubeflow's PyTorchJob starts one process a pod and sets no LOCAL_ variables.
    let (local_rank, local_world_size) = match vars.has("LOCAL_RANK") {
        true => (vars.need("LOCAL_RANK", "RANK")?, vars.need("LOCAL_WORLD_SIZE", "LOCAL_RANK")?),
        false => (0, 1),
    };
    let one_node = local_world_size == world_size;
    let node_rank = match vars.number("GROUP_RANK")? {
        Some(node_rank) => node_rank,
        None => rank / local_world_size.max(1),
    };
    let (master_addr, master_port) = vars.master(world_size, one_node, None)?;
    let source = match vars.number::<i32>(LAUNCHER_PID)? {
        Some(pid) if vars.has(SPARE) => Source::Spare { pid },
        Some(pid) => Source::Launcher { pid },
        None => Source::Torchrun,
    };
    let generation = vars.number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0);
    Ok(World {
        rank,
        local_rank,
        world_size,
        local_world_size,
        node_rank,
        master_addr,
        master_port,
        generation,
        source,
    })
}

/// `mpirun`; its `NODE_RANK` counts processes of a node, so the node's number is worked out from the rank.
fn open_mpi(vars: Vars<'_>) -> Result<World, LaunchError> {
    let need = |name| vars.need(name, "OMPI_COMM_WORLD_RANK");
    let rank = need("OMPI_COMM_WORLD_RANK")?;
    let world_size = need("OMPI_COMM_WORLD_SIZE")?;
    let local_rank = need("OMPI_COMM_WORLD_LOCAL_RANK")?;
    let local_world_size: usize = need("OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let (master_addr, master_port) = vars.master(world_size, local_world_size == world_size, None)?;
    Ok(World {
        rank,
        local_rank,
        world_size,
        local_world_size,
        node_rank: rank / local_world_size.max(1),
        master_addr,
        master_port,
        generation: 0,
        source: Source::OpenMpi,
    })
}

/// Four processes that each believe to be alone would write into one run folder.
fn refuse_lone_world_size(vars: Vars<'_>) -> Result<(), LaunchError> {
    match vars.number::<usize>("WORLD_SIZE")? {
        Some(size) if size > 1 => refuse(format!(
            "WORLD_SIZE={size} is set but RANK is not; set RANK for each process, or unset WORLD_SIZE to run alone"
        )),
        _ => Ok(()),
    }
}

fn below([index_name, count_name]: [&str; 2], index: usize, count: usize) -> Result<(), LaunchError> {
    match index < count {
        true => Ok(()),
        false => refuse(format!(
            "{index_name}={index} but {count_name}={count}; {index_name} counts from 0 and must be below {count_name}"
        )),
    }
}

pub(crate) fn refuse<T>(detail: String) -> Result<T, LaunchError> {
    Err(LaunchError::Environment { detail })
}

/// Variables by name, read as numbers.
#[derive(Clone, Copy)]
pub(crate) struct Vars<'a>(&'a dyn Fn(&str) -> Option<String>);

impl<'a> Vars<'a> {
    pub(crate) fn new(vars: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self(vars)
    }

    pub(crate) fn text(self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn has(self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// The number in `name`, if it is set.
    pub(crate) fn number<T: std::str::FromStr>(self, name: &str) -> Result<Option<T>, LaunchError> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => refuse(format!("{name}={value:?} is not a number in range; set it to one or unset it")),
        }
    }

    /// The number in `name`, which `because` being set asks for.
    pub(crate) fn need<T: std::str::FromStr>(self, name: &str, because: &str) -> Result<T, LaunchError> {
        match self.number(name)? {
            Some(number) => Ok(number),
            None => refuse(format!(
                "{because} is set but {name} is not; set {name}, or unset {because} to run alone"
            )),
        }
    }

    /// Where the ranks meet. One node meets on loopback unless told otherwise; `fallback_port` serves where the
    /// launcher's job number gives a port of its own.
    pub(crate) fn master(
        self,
        world_size: usize,
        one_node: bool,
        fallback_port: Option<u16>,
    ) -> Result<(String, u16), LaunchError> {
        if world_size <= 1 {
            let port = self.number("MASTER_PORT")?.unwrap_or(0);
            return Ok((self.text("MASTER_ADDR").unwrap_or_else(|| LOOPBACK.into()), port));
        }
        let addr = match self.text("MASTER_ADDR") {
            Some(addr) => addr,
            None if one_node => LOOPBACK.into(),
            None => {
                return refuse(format!(
                    "{world_size} processes on several nodes need MASTER_ADDR; set it to the host of rank 0"
                ));
            }
        };
        let port = match self.number("MASTER_PORT")?.or(fallback_port) {
            Some(port) => port,
            None => {
                return refuse(format!(
                    "{world_size} processes need MASTER_PORT to meet; set it to a free port of {addr}"
                ));
            }
        };
        Ok((addr, port))
    }
}
