//! The launcher from outside: what it reads of its environment, and real processes. One program: linked once.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;
mod faults;
mod meeting;
mod nodes;
mod processes;
mod world;
