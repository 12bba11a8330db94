//! Which nodes a launch spans and where they meet: from the command line, else from the environment of whoever
//! started this launcher.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::error::LaunchError;
use crate::nproc::Nproc;
use crate::slurm;
use crate::world::Vars;

/// torchrun's default port of its rendezvous.
const DEFAULT_PORT: u16 = 29400;

/// Where launchers meet: `HOST:PORT` of node 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rdzv {
    /// Name or address of node 0.
    pub host: String,
    /// A free port there.
    pub port: u16,
}

impl fmt::Display for Rdzv {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "[{}]:{}", self.host, self.port),
            false => write!(out, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Rdzv {
    type Err = LaunchError;

    /// `HOST`, `HOST:PORT`, `[IPV6]:PORT`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || LaunchError::Arguments {
            detail: format!(
                "{text:?} is no meeting place; give HOST:PORT of node 0, such as node0:{DEFAULT_PORT}"
            ),
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
                match (rest, rest.strip_prefix(':')) {
                    ("", _) => (host, None),
                    (_, Some(port)) => (host, Some(port)),
                    (_, None) => return Err(wrong()),
                }
            }
            None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| wrong()))?;
        let is_host =
            !host.is_empty() && !host.contains([' ', '/']) && (text.starts_with('[') || !host.contains(':'));
        match is_host && port > 0 {
            true => Ok(Self { host: host.to_owned(), port }),
            false => Err(wrong()),
        }
    }
}

/// What the user typed; what is `None` comes from the environment.
#[derive(Debug, Clone, Default)]
pub struct NodeFlags {
    /// `--nproc-per-node`.
    pub nproc_per_node: Option<Nproc>,
    /// `--nnodes`.
    pub nnodes: Option<usize>,
    /// `--node-rank`.
    pub node_rank: Option<usize>,
    /// `--rdzv`.
    pub rdzv: Option<Rdzv>,
    /// `--max-restarts`.
    pub max_restarts: Option<u32>,
}

/// The nodes of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// How many.
    pub nnodes: usize,
    /// Number of this one; `None` where the coordinator gives the numbers out.
    pub node_rank: Option<usize>,
    /// Where they meet; needed for more than one.
    pub rdzv: Option<Rdzv>,
    /// A node that is silent for so long is lost.
    pub lease: Duration,
    /// So long may it take until all nodes are there.
    pub join: Duration,
}

impl Nodes {
    /// This machine alone.
    #[must_use]
    pub fn one() -> Self {
        Self {
            nnodes: 1,
            node_rank: None,
            rdzv: None,
            lease: Duration::from_secs(10),
            join: Duration::from_secs(300),
        }
    }
}

/// A launch on this node, and which of its numbers came from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The nodes.
    pub nodes: Nodes,
    /// Workers on this node.
    pub nproc: Nproc,
    /// Restarts of the set.
    pub max_restarts: u32,
    /// One line for each number that was taken from the environment.
    pub taken: Vec<String>,
}

/// Restarts where nobody says how many.
const MAX_RESTARTS: u32 = 3;

/// Fills what the user left open from torchrun's `PET_*` (Kubeflow), from SLURM or Open MPI where each task is a
/// launcher, or from `RANK` and `WORLD_SIZE` of one process a pod. Flags win.
///
/// # Errors
/// [`LaunchError::Environment`] for variables that make no sense, [`LaunchError::Arguments`] for several nodes that
/// have nowhere to meet, or for flags of several nodes where nothing says how many.
pub fn detect(flags: NodeFlags, vars: &dyn Fn(&str) -> Option<String>) -> Result<Detected, LaunchError> {
    let mut found = Found { vars: Vars::new(vars), taken: Vec::new() };
    let around = found.around()?;
    let nproc = match flags.nproc_per_node {
        Some(nproc) => nproc,
        None => found.parsed("PET_NPROC_PER_NODE", "--nproc-per-node")?.unwrap_or(Nproc::Auto),
    };
    let max_restarts = match flags.max_restarts {
        Some(max_restarts) => max_restarts,
        None => found.number("PET_MAX_RESTARTS", "--max-restarts")?.unwrap_or(MAX_RESTARTS),
    };
    let nnodes = match (flags.nnodes, found.text("PET_NNODES")) {
        (Some(nnodes), _) => Some(nnodes),
        (None, Some(text)) => Some(found.nnodes(&text)?),
        (None, None) => found.take(around.nnodes, "--nnodes"),
    };
    refuse_lone_flags(&flags, nnodes)?;
    let nnodes = nnodes.unwrap_or(1);
    let mut nodes = Nodes { nnodes, ..Nodes::one() };
    if nnodes > 1 {
        nodes.node_rank = match flags.node_rank {
            Some(rank) => Some(rank),
            None => match found.number("PET_NODE_RANK", "--node-rank")? {
                Some(rank) => Some(rank),
                None => found.take(around.node_rank, "--node-rank"),
            },
        };
        nodes.rdzv = match flags.rdzv {
            Some(rdzv) => Some(rdzv),
            None => found.rdzv()?.or(found.take(around.rdzv, "--rdzv")),
        };
        check(&nodes)?;
    }
    Ok(Detected { nodes, nproc, max_restarts, taken: found.taken })
}

/// Without their number several nodes would each train alone, into one folder.
fn refuse_lone_flags(flags: &NodeFlags, nnodes: Option<usize>) -> Result<(), LaunchError> {
    let typed = [("--rdzv", flags.rdzv.is_some()), ("--node-rank", flags.node_rank.is_some())];
    match typed.into_iter().find(|(_, typed)| *typed) {
        Some((flag, _)) if nnodes.is_none() => Err(LaunchError::Arguments {
            detail: format!(
                "{flag} is for a run of several nodes, and nothing says how many; add --nnodes N, the same on all nodes"
            ),
        }),
        _ => Ok(()),
    }
}

fn check(nodes: &Nodes) -> Result<(), LaunchError> {
    let refuse = |detail: String| Err(LaunchError::Arguments { detail });
    if nodes.rdzv.is_none() {
        return refuse(format!(
            "{} nodes need a place to meet; give --rdzv HOST:PORT of node 0, the same on all nodes",
            nodes.nnodes
        ));
    }
    match nodes.node_rank.filter(|rank| *rank >= nodes.nnodes) {
        Some(rank) => refuse(format!("--node-rank {rank} must be below --nnodes {}", nodes.nnodes)),
        None => Ok(()),
    }
}

/// What the scheduler around this launcher says, each with the variable that says it.
#[derive(Default)]
struct Around {
    nnodes: Option<(usize, &'static str)>,
    node_rank: Option<(usize, &'static str)>,
    rdzv: Option<(Rdzv, &'static str)>,
}

struct Found<'a> {
    vars: Vars<'a>,
    taken: Vec<String>,
}

impl Found<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.vars.text(name)
    }

    fn take<T: fmt::Display>(&mut self, found: Option<(T, &'static str)>, flag: &str) -> Option<T> {
        let (value, name) = found?;
        self.taken.push(format!("{flag} {value}, from {name}"));
        Some(value)
    }

    fn number<T: FromStr + fmt::Display>(
        &mut self,
        name: &'static str,
        flag: &str,
    ) -> Result<Option<T>, LaunchError> {
        let number = self.vars.number(name)?;
        Ok(self.take(number.map(|number: T| (number, name)), flag))
    }

    fn parsed<T: FromStr<Err = LaunchError>>(
        &mut self,
        name: &'static str,
        flag: &str,
    ) -> Result<Option<T>, LaunchError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let value =
            text.parse().map_err(|error| LaunchError::Environment { detail: format!("{name}: {error}") })?;
        self.taken.push(format!("{flag} {text}, from {name}"));
        Ok(Some(value))
    }

    /// torchrun's `MIN:MAX` where both are one number.
    fn nnodes(&mut self, text: &str) -> Result<usize, LaunchError> {
        let (least, most) = text.split_once(':').unwrap_or((text, text));
        match (least.trim().parse::<usize>(), least.trim() == most.trim()) {
            (Ok(nnodes), true) if nnodes > 0 => {
                self.taken.push(format!("--nnodes {nnodes}, from PET_NNODES"));
                Ok(nnodes)
            }
            _ => Err(LaunchError::Environment {
                detail: format!(
                    "PET_NNODES={text:?} is no fixed number of nodes; set it to one, or give --nnodes"
                ),
            }),
        }
    }

    /// torchrun's meeting place.
    fn rdzv(&mut self) -> Result<Option<Rdzv>, LaunchError> {
        if let Some(rdzv) = self.parsed("PET_RDZV_ENDPOINT", "--rdzv")? {
            return Ok(Some(rdzv));
        }
        let Some(host) = self.text("PET_MASTER_ADDR") else { return Ok(None) };
        let port = self.vars.number("PET_MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
        Ok(self.take(Some((Rdzv { host, port }, "PET_MASTER_ADDR and PET_MASTER_PORT")), "--rdzv"))
    }

    /// `MASTER_ADDR:MASTER_PORT`, which pods and job scripts set.
    fn master(&self) -> Result<Option<(Rdzv, &'static str)>, LaunchError> {
        let Some(host) = self.text("MASTER_ADDR") else { return Ok(None) };
        let port = self.vars.number("MASTER_PORT")?.unwrap_or(DEFAULT_PORT);
        Ok(Some((Rdzv { host, port }, "MASTER_ADDR and MASTER_PORT")))
    }

    fn around(&self) -> Result<Around, LaunchError> {
        let has = |name| self.vars.has(name);
        if has("PET_NNODES") {
            Ok(Around::default())
        } else if has("SLURM_PROCID") && has("SLURM_STEP_ID") {
            self.slurm()
        } else if has("OMPI_COMM_WORLD_RANK") {
            self.open_mpi()
        } else if has("RANK") && has("WORLD_SIZE") && !has("LOCAL_RANK") {
            let nnodes = self.vars.need("WORLD_SIZE", "RANK")?;
            let node_rank = self.vars.need("RANK", "RANK")?;
            Ok(Around {
                nnodes: Some((nnodes, "WORLD_SIZE")),
                node_rank: Some((node_rank, "RANK")),
                rdzv: self.master()?,
            })
        } else {
            Ok(Around::default())
        }
    }

    fn slurm(&self) -> Result<Around, LaunchError> {
        let nnodes: Option<usize> = self.vars.number("SLURM_STEP_NUM_NODES")?;
        let nnodes = nnodes.or(self.vars.number("SLURM_NNODES")?).unwrap_or(1);
        let tasks: usize = self.vars.number("SLURM_STEP_NUM_TASKS")?.unwrap_or(nnodes);
        one_launcher_a_node(tasks, nnodes, "srun --ntasks-per-node=1")?;
        let node_rank = self.vars.need("SLURM_NODEID", "SLURM_PROCID")?;
        let rdzv = match self.master()? {
            Some(master) => Some(master),
            None => slurm::meeting(self.vars)?.map(|rdzv| (rdzv, "SLURM_STEP_NODELIST and SLURM_JOB_ID")),
        };
        Ok(Around {
            nnodes: Some((nnodes, "SLURM_STEP_NUM_NODES")),
            node_rank: Some((node_rank, "SLURM_NODEID")),
            rdzv,
        })
    }

    fn open_mpi(&self) -> Result<Around, LaunchError> {
        let need = |name| self.vars.need::<usize>(name, "OMPI_COMM_WORLD_RANK");
        let nnodes = need("OMPI_COMM_WORLD_SIZE")?;
        let local = need("OMPI_COMM_WORLD_LOCAL_SIZE")?;
        one_launcher_a_node(nnodes, nnodes / local.max(1), "mpirun --map-by ppr:1:node")?;
        let node_rank = need("OMPI_COMM_WORLD_RANK")?;
        Ok(Around {
            nnodes: Some((nnodes, "OMPI_COMM_WORLD_SIZE")),
            node_rank: Some((node_rank, "OMPI_COMM_WORLD_RANK")),
            rdzv: self.master()?,
        })
    }
}

fn one_launcher_a_node(launchers: usize, nnodes: usize, remedy: &str) -> Result<(), LaunchError> {
    match launchers == nnodes {
        true => Ok(()),
        false => Err(LaunchError::Environment {
            detail: format!(
                "{launchers} launchers on {nnodes} nodes: each starts all workers of its node, so start one a node \
                 ({remedy}), or start blip2-worker train itself as the tasks"
            ),
        }),
    }
}

/// The name by which launchers of one run know each other.
pub(crate) fn run_id(run_dir: &Path) -> String {
    run_dir.file_name().map_or_else(|| "blip2".into(), |name| name.to_string_lossy().into_owned())
}
