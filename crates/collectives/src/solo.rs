//! A world of one.

use tch::{Device, Tensor};
use torch_bridge::Reduction;

use crate::error::{CommError, Operation};
use crate::group::ProcessGroup;
use crate::reduce::{GradientReducer, ReduceOptions};

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

    fn beside(&self, _name: &str) -> Result<Box<dyn ProcessGroup>, CommError> {
        Ok(Box::new(*self))
    }

    fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError> {
        if to != from || to != [tensor.size()[0]] {
            let detail = format!("rows {to:?} to ranks and {from:?} from ranks in a world of one");
            return Err(CommError::Backend { rank: 0, operation: Operation::AllToAll, detail });
        }
        self.all_gather(tensor)
    }

    fn broadcast(&self, _tensor: &mut Tensor, _root: usize) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }

    fn reducer(
        &self,
        parameters: &[Tensor],
        options: ReduceOptions,
    ) -> Result<Box<dyn GradientReducer>, CommError> {
        Ok(Box::new(SoloReducer { bytes: options.bytes(parameters) }))
    }
}

/// The mean over one rank. Nothing travels, so nothing is rounded; its bytes are those that each of more ranks would send.
struct SoloReducer {
    bytes: u64,
}

impl GradientReducer for SoloReducer {
    fn accumulate(&mut self, loss: &Tensor) -> Result<(), CommError> {
        loss.backward();
        Ok(())
    }

    fn reduce(&mut self, loss: &Tensor, ready: &(dyn Fn() + Sync)) -> Result<Reduction, CommError> {
        loss.backward();
        ready();
        Ok(Reduction { bytes: self.bytes, ..Reduction::default() })
    }
}
