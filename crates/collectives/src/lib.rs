//! Moves tensors between ranks: all-reduce, all-gather, broadcast, barrier.
//!
//! [`connect`] meets the other ranks and gives a [`ProcessGroup`]. It never decides when to talk and knows no
//! parameter by name. A world of one is no special case: [`SoloGroup`] gives what a world of N would give.

mod c10d;
mod connect;
mod error;
mod group;
mod place;
mod reduce;
mod solo;
mod watched;

pub use c10d::C10dGroup;
pub use connect::{Fabric, Timeouts, connect, connect_over, connect_within};
pub use error::{CommError, Operation};
pub use group::{Gathering, ProcessGroup};
pub use reduce::{GradientDtype, GradientReducer, ReduceOptions};
pub use solo::SoloGroup;
pub use torch_bridge::Reduction;
pub use watched::WatchedGroup;
