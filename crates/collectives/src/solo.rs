//! A world of one.

use tch::{Device, Tensor};

use crate::error::CommError;
use crate::group::ProcessGroup;

/// A world of one: same path, same gradients. What is gathered carries no gradient here either.
#[derive(Clone, Copy, Debug)]
pub struct SoloGroup {
    device: Device,
}

impl SoloGroup {
    /// A world of one whose tensors live on `device`.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device }
    }
}

impl ProcessGroup for SoloGroup {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn device(&self) -> Device {
        self.device
    }

    fn all_reduce_sum(&self, _tensor: &mut Tensor) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError> {
        // A contiguous copy, as from any other group: writing into it must not reach the original.
        let own = tensor.detach().contiguous().copy();
        Ok(if own.dim() == 0 { own.view([1]) } else { own })
    }

    fn broadcast(&self, _tensor: &mut Tensor, _root: usize) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }
}
