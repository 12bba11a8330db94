//! Several nodes, one run: who belongs to it, when a generation starts and ends.
//!
//! The launcher of node 0 serves the coordinator on `--rdzv`; every launcher, that one too, comes to it ([`Invitation`]) and
//! speaks to it ([`Member`]).
//! All decisions are in `state`; `server` and `member` only carry messages, `wire` keeps strangers out.

mod join;
mod member;
mod message;
mod server;
mod state;
mod wire;

pub(crate) use join::{Invitation, Joined};
pub(crate) use member::{Member, News};
pub(crate) use message::{FromNode, Hello, Place, exit_of};
pub(crate) use server::{Coordinator, serve};
pub(crate) use state::Rules;
