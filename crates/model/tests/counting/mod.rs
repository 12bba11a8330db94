//! A process group that counts what goes through another one.

use std::cell::Cell;

use collectives::{CommError, GradientReducer, ProcessGroup, ReduceOptions};
use tch::{Device, Tensor};

/// Counts rows, and passes everything on.
pub struct Counting {
    group: Box<dyn ProcessGroup>,
    arrived: Cell<i64>,
    widest: Cell<usize>,
}

impl Counting {
    pub fn new(group: Box<dyn ProcessGroup>) -> Self {
        Self { group, arrived: Cell::new(0), widest: Cell::new(0) }
    }

    /// Rows that came by all-to-all.
    pub fn arrived_by_all_to_all(&self) -> i64 {
        self.arrived.get()
    }

    /// Numbers in a row of the widest tensor that was gathered.
    pub fn widest_gathered(&self) -> usize {
        self.widest.get()
    }
}

impl ProcessGroup for Counting {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world_size(&self) -> usize {
        self.group.world_size()
    }

    fn device(&self) -> Device {
        self.group.device()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CommError> {
        self.group.all_reduce_sum(tensor)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError> {
        let rows = tensor.size().first().map_or(1, |&rows| rows as usize);
        self.widest.set(self.widest.get().max(tensor.numel() / rows.max(1)));
        self.group.all_gather(tensor)
    }

    fn beside(&self, name: &str) -> Result<Box<dyn ProcessGroup>, CommError> {
        self.group.beside(name)
    }

    fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError> {
        self.arrived.set(self.arrived.get() + from.iter().sum::<i64>());
        self.group.all_to_all(tensor, to, from)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError> {
        self.group.broadcast(tensor, root)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.group.barrier()
    }

    fn reducer(
        &self,
        parameters: &[Tensor],
        options: ReduceOptions,
    ) -> Result<Box<dyn GradientReducer>, CommError> {
        self.group.reducer(parameters, options)
    }
}
