//! One command becomes N processes that know who they are, kept alive or ended.
//!
//! A worker asks [`World`] who it is, whoever started it (our launcher, torchrun, Open MPI, SLURM, or nobody), lets
//! itself be ended with its launcher ([`die_with_parent`]) and watches for a wish to stop ([`StopFlag`]).
//!
//! [`launch`] starts the workers of one machine, and with the launchers of other nodes ([`Nodes`]) those of a run that
//! spans several. It waits for them, hands on signals, ends the rest when one fails,
//! says which one it was (`failure.json`), and forms the set again while restarts are left. A worker that makes no
//! progress ([`ProgressPage`]) is found by name and phase (`watchdog`). What to do next is decided by pure code
//! (`decide`, `watchdog`, `coordinator::state`); everything around it only acts.
//!
//! This crate is the only reader of the environment; it opens no tensor and reads no training config.

mod addresses;
mod budget;
mod call;
mod command;
mod coordinator;
mod cores;
mod decide;
mod environment;
mod error;
mod exit;
mod failure;
mod fleet;
mod launcher;
mod listen;
mod meeting;
mod nodes;
mod nproc;
mod parent;
mod progress;
mod reserved_port;
mod run_lock;
mod screen;
mod slurm;
mod standing;
mod stop;
mod straggler;
mod terminal;
mod token;
mod watch;
mod watchdog;
mod worker_log;
mod world;

pub use call::Call;
pub use command::worker_command;
pub use cores::pin_to_core;
pub use environment::{cache_dir, variable};
pub use error::{LaunchError, with_causes};
pub use exit::Exit;
pub use failure::{FAILURE, Failure, OtherEnd};
pub use launcher::{LaunchSpec, launch, launch_unless};
pub use meeting::dry_run;
pub use nodes::{Detected, NodeFlags, Nodes, Rdzv, detect};
pub use nproc::Nproc;
pub use parent::die_with_parent;
pub use progress::{ProgressPage, WorkerPhase};
pub use reserved_port::ReservedPort;
pub use run_lock::RunLock;
pub use screen::{last_words, say};
pub use stop::{StopFlag, StopSignals};
pub use watchdog::Patience;
pub use world::{Source, World};
