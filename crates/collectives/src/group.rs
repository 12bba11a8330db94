//! The contract that every fabric keeps.

use std::sync::Arc;

use launch::ProgressPage;
use tch::{Device, Tensor};
use torch_bridge::BridgeError;

use crate::error::{CommError, Operation};
use crate::reduce::{GradientReducer, ReduceOptions};

/// All ranks of a run, as one of them sees them.
///
/// Every rank calls the same operations in the same order, with tensors of equal shape and dtype on
/// [`ProcessGroup::device`]. An operation returns when it is complete. After an error the group is of no more use, and
/// what it was to write is undefined.
pub trait ProcessGroup: Send {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Processes in all.
    fn world_size(&self) -> usize;

    /// Where the tensors of this rank live.
    fn device(&self) -> Device;

    /// Sums `tensor` over ranks, in place and outside autograd.
    ///
    /// # Errors
    /// [`CommError::PeerGone`] or [`CommError::TimedOut`] naming this rank and the operation.
    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CommError>;

    /// `tensor` `[B, ...]` of every rank in rank order: `[world_size * B, ...]`, a contiguous copy without gradient. A
    /// scalar counts as `[1]`.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError>;

    /// [`ProcessGroup::all_gather`] into `gathered`, contiguous, that may return while the message is under way. Every rank calls
    /// it in the same order among its other operations; neither tensor is to be touched before the end.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    fn start_all_gather(&self, tensor: &Tensor, gathered: &Tensor) -> Result<Gathering, CommError> {
        let mut place = gathered.shallow_clone();
        place.copy_(&self.all_gather(tensor)?);
        Ok(Gathering::done(place))
    }

    /// Another group of the same ranks, whose messages never meet those of this one: they may be under way at once. Every
    /// rank calls it, with the same `name`, which this group has not had before.
    ///
    /// # Errors
    /// As [`crate::connect_over`].
    fn beside(&self, name: &str) -> Result<Box<dyn ProcessGroup>, CommError>;

    /// Rows of `tensor` `[sum(to), ...]` to each rank: the first `to[0]` to rank 0, the next `to[1]` to rank 1, and so on.
    /// What comes, `from[r]` rows of rank r, lies in rank order: `[sum(from), ...]`, a contiguous copy without gradient.
    /// `to` and `from` have a number for each rank, this one included.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError>;

    /// Gives every rank the `tensor` of rank `root`, in place and outside autograd.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError>;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    fn barrier(&self) -> Result<(), CommError>;

    /// Leaves at once: what is under way fails, here and on ranks that wait for this one. For a group that has lost a rank
    /// and whose other ranks are to meet again; it is of no more use.
    fn abort(&self) {}

    /// Averages the gradients of `parameters` over ranks during backward passes. Every rank gives trainable leaves of the
    /// same shapes in the same order: the order in which they travel, so those whose gradients are there first come first.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`]; [`CommError::Backend`] where ranks have other parameters.
    fn reducer(
        &self,
        parameters: &[Tensor],
        options: ReduceOptions,
    ) -> Result<Box<dyn GradientReducer>, CommError>;
}

/// An all-gather that may be under way: [`ProcessGroup::start_all_gather`].
pub struct Gathering {
    progress: Progress,
    /// Where it is told that somebody waits for it.
    page: Option<Arc<ProgressPage>>,
}

enum Progress {
    Done(Tensor),
    Underway { message: torch_bridge::Gathering, rank: usize },
}

impl Gathering {
    fn done(gathered: Tensor) -> Self {
        Self { progress: Progress::Done(gathered), page: None }
    }

    pub(crate) fn underway(message: torch_bridge::Gathering, rank: usize) -> Self {
        Self { progress: Progress::Underway { message, rank }, page: None }
    }

    pub(crate) fn watched(self, page: &Arc<ProgressPage>) -> Self {
        Self { page: Some(Arc::clone(page)), ..self }
    }

    /// Waits for the message: the place that was given, filled.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    pub fn finish(self) -> Result<Tensor, CommError> {
        match (self.progress, self.page) {
            (Progress::Done(gathered), _) => Ok(gathered),
            (Progress::Underway { message, rank }, page) => {
                let finished = match page {
                    Some(page) => page.exchanging(|| message.finish()),
                    None => message.finish(),
                };
                finished.map_err(|error: BridgeError| CommError::new(rank, Operation::AllGather, error))
            }
        }
    }
}
