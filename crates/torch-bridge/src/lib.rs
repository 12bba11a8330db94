//! What libtorch has and tch does not bind: c10d process groups and gradient reduction, the fused AdamW step,
//! autocast dtypes, recomputation in the backward pass, copies beside computation.
//!
//! The only crate with `unsafe`. It decides nothing: addresses, timeouts and dtypes come from the caller. A C++ exception
//! never crosses into Rust; it arrives as [`BridgeError`].
#![allow(unsafe_code)]

mod adamw;
mod allocator;
mod autocast;
mod cpu;
mod error;
mod group;
mod recompute;
mod reducer;
mod store;
mod sys;
mod upload;

pub use adamw::{AdamWStep, drop_gradients, fused_adamw};
pub use allocator::keep_freed_memory;
pub use autocast::autocast;
pub use cpu::cpu_has_fast_bf16;
pub use error::BridgeError;
pub use group::{Communicator, Gathering, Membership};
pub use recompute::recomputed;
pub use reducer::{Reducer, Reduction};
pub use store::Store;
pub use upload::Upload;
