//! Ranks that talk through libtorch's c10d: Gloo between CPUs, NCCL between GPUs.

use tch::{Device, Tensor};
use torch_bridge::{BridgeError, Communicator, Reducer, Reduction};

use crate::connect::Meeting;
use crate::error::{CommError, Operation};
use crate::group::{Gathering, ProcessGroup};
use crate::reduce::{GradientDtype, GradientReducer, ReduceOptions};

/// N processes over Gloo or NCCL; [`crate::connect`] makes it.
pub struct C10dGroup {
    communicator: Communicator,
    /// Where the ranks met, and may meet again.
    meeting: Meeting,
    rank: usize,
    world_size: usize,
    device: Device,
}

impl C10dGroup {
    /// What the ranks of `meeting` make under `name`. Returns when all of them have come.
    pub(crate) fn new(meeting: Meeting, name: &str) -> Result<Self, CommError> {
        let communicator = meeting.communicator(name)?;
        let (rank, world_size, device) = (meeting.rank, meeting.world_size, meeting.device);
        let group = Self { communicator, meeting, rank, world_size, device };
        // A rank that got through and ended at once must not take the store away from one that still reads it.
        group.barrier()?;
        Ok(group)
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

    fn start_all_gather(&self, tensor: &Tensor, gathered: &Tensor) -> Result<Gathering, CommError> {
        let started = self.communicator.start_all_gather(tensor, gathered);
        let message = self.named(Operation::AllGather, started)?;
        Ok(Gathering::underway(message, self.rank))
    }

    fn beside(&self, name: &str) -> Result<Box<dyn ProcessGroup>, CommError> {
        Ok(Box::new(Self::new(self.meeting.clone(), name)?))
    }

    fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError> {
        self.named(Operation::AllToAll, self.communicator.all_to_all(tensor, to, from))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError> {
        self.named(Operation::Broadcast, self.communicator.broadcast(tensor, root))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.named(Operation::Barrier, self.communicator.barrier())
    }

    fn abort(&self) {
        self.communicator.abort();
    }

    fn reducer(
        &self,
        parameters: &[Tensor],
        options: ReduceOptions,
    ) -> Result<Box<dyn GradientReducer>, CommError> {
        let bf16 = options.dtype == GradientDtype::Bf16;
        let made = Reducer::new(&self.communicator, parameters, options.bucket_bytes, bf16);
        let reducer = self.named(Operation::Reduce, made)?;
        Ok(Box::new(C10dReducer { reducer, rank: self.rank }))
    }
}

/// c10d's `Reducer`, whose errors name the rank.
struct C10dReducer {
    reducer: Reducer,
    rank: usize,
}

impl GradientReducer for C10dReducer {
    fn accumulate(&mut self, loss: &Tensor) -> Result<(), CommError> {
        let passed = self.reducer.accumulate(loss);
        passed.map_err(|error| CommError::new(self.rank, Operation::Reduce, error))
    }

    fn reduce(&mut self, loss: &Tensor, ready: &(dyn Fn() + Sync)) -> Result<Reduction, CommError> {
        let reduced = self.reducer.reduce(loss, ready);
        reduced.map_err(|error| CommError::new(self.rank, Operation::Reduce, error))
    }
}
