//! One command becomes N processes that know who they are, kept alive or ended.
//!
//! A worker asks [`World`] who it is, whoever started it (our launcher, torchrun, Open MPI, SLURM, or nobody), lets
//! itself be ended with its launcher ([`die_with_parent`]) and watches for a wish to stop ([`StopFlag`]).
//!
//! [`launch`] starts the workers of one machine: it waits for them, hands on signals, ends the rest when one fails,
//! says which one it was (`failure.json`), and forms the set again while restarts are left. What to do next is decided
//! by one pure function (`decide`); everything around it only acts.
//!
//! This crate is the only reader of the environment; it opens no tensor and reads no training config.

mod command;
mod decide;
mod environment;
mod error;
mod exit;
mod failure;
mod fleet;
mod launcher;
mod nproc;
mod parent;
mod slurm;
mod stop;
mod worker_log;
mod world;

pub use command::worker_command;
pub use environment::cache_dir;
pub use error::{LaunchError, with_causes};
pub use exit::Exit;
pub use failure::{FAILURE, Failure, OtherEnd};
pub use launcher::{LaunchSpec, launch};
pub use nproc::Nproc;
pub use parent::die_with_parent;
pub use stop::StopFlag;
pub use world::{Source, World};
