//! Ranks that talk through libtorch's c10d: Gloo between CPUs, NCCL between GPUs.

use tch::{Device, Tensor};
use torch_bridge::{BridgeError, Communicator};

use crate::error::{CommError, Operation};
use crate::group::ProcessGroup;

/// N processes over Gloo or NCCL; [`crate::connect`] makes it.
pub struct C10dGroup {
    communicator: Communicator,
    rank: usize,
    world_size: usize,
    device: Device,
}

impl C10dGroup {
    pub(crate) fn new(communicator: Communicator, rank: usize, world_size: usize, device: Device) -> Self {
        Self { communicator, rank, world_size, device }
    }

    fn named<T>(&self, operation: Operation, result: Result<T, BridgeError>) -> Result<T, CommError> {
        result.map_err(|error| CommError::new(self.rank, operation, error))
    }
}

impl ProcessGroup for C10dGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn device(&self) -> Device {
        self.device
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CommError> {
        self.named(Operation::AllReduce, self.communicator.all_reduce_sum(tensor))
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError> {
        self.named(Operation::AllGather, self.communicator.all_gather(tensor))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError> {
        self.named(Operation::Broadcast, self.communicator.broadcast(tensor, root))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.named(Operation::Barrier, self.communicator.barrier())
    }
}
