//! Gradients averaged over ranks, during the backward pass.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_bridge::Reduction;

use crate::error::CommError;

/// As what gradients travel. Closed: what all fabrics sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientDtype {
    /// As they are.
    #[default]
    Fp32,
    /// Rounded to 8 bits of precision: half the bytes.
    Bf16,
}

/// How gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceOptions {
    /// About so many bytes of gradients go in one message (PyTorch's DDP: 25 MiB).
    pub bucket_bytes: usize,
    /// As what they go.
    pub dtype: GradientDtype,
}

impl ReduceOptions {
    /// What each rank hands to the all-reduce in a step.
    #[must_use]
    pub fn bytes(&self, parameters: &[Tensor]) -> u64 {
        parameters.iter().map(|parameter| self.dtype.bytes(parameter.numel() as u64)).sum()
    }
}

impl GradientDtype {
    /// Bytes of the gradients of `parameters` numbers.
    #[must_use]
    pub fn bytes(self, parameters: u64) -> u64 {
        match self {
            Self::Fp32 => 4 * parameters,
            Self::Bf16 => 2 * parameters,
        }
    }
}

/// Averages gradients over ranks; [`crate::ProcessGroup::reducer`] makes one for a fixed list of parameters.
///
/// A step is any number of [`GradientReducer::accumulate`], then one [`GradientReducer::reduce`]. Every rank does as many.
pub trait GradientReducer {
    /// The backward pass of a micro-batch that others of the step follow: nothing travels.
    ///
    /// # Errors
    /// [`CommError::OutOfMemory`], or what libtorch says.
    fn accumulate(&mut self, loss: &Tensor) -> Result<(), CommError>;

    /// The backward pass of the step's last micro-batch, during which gradients travel. Behind it they hold the mean over
    /// ranks of what each has accumulated; a parameter that no rank's loss reached has no gradient.
    ///
    /// `ready` is called once, from whatever thread computes, when this rank has nothing left but to wait for others.
    ///
    /// # Errors
    /// [`CommError::PeerGone`] or [`CommError::TimedOut`]; the gradients are then undefined.
    fn reduce(&mut self, loss: &Tensor, ready: &(dyn Fn() + Sync)) -> Result<Reduction, CommError>;
}
