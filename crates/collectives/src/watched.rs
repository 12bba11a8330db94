//! A group whose waiting can be seen from outside.

use std::sync::Arc;

use launch::ProgressPage;
use tch::{Device, Tensor};

use crate::error::CommError;
use crate::group::{Gathering, ProcessGroup};
use crate::reduce::{GradientReducer, ReduceOptions};

/// Another group that says on this worker's page when it waits for other ranks: two writes of a microsecond for each
/// operation. The launcher tells by them who holds up whom. What a reducer waits for is its caller's to say, who knows when
/// nothing is left to compute.
pub struct WatchedGroup {
    inner: Box<dyn ProcessGroup>,
    page: Arc<ProgressPage>,
}

impl WatchedGroup {
    /// `inner`, whose waiting `page` tells.
    #[must_use]
    pub fn new(inner: Box<dyn ProcessGroup>, page: Arc<ProgressPage>) -> Self {
        Self { inner, page }
    }
}

impl ProcessGroup for WatchedGroup {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CommError> {
        self.page.exchanging(|| self.inner.all_reduce_sum(tensor))
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, CommError> {
        self.page.exchanging(|| self.inner.all_gather(tensor))
    }

    fn start_all_gather(&self, tensor: &Tensor, gathered: &Tensor) -> Result<Gathering, CommError> {
        let started = self.page.exchanging(|| self.inner.start_all_gather(tensor, gathered))?;
        Ok(started.watched(&self.page))
    }

    fn beside(&self, name: &str) -> Result<Box<dyn ProcessGroup>, CommError> {
        Ok(Box::new(Self::new(self.inner.beside(name)?, Arc::clone(&self.page))))
    }

    fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, CommError> {
        self.page.exchanging(|| self.inner.all_to_all(tensor, to, from))
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), CommError> {
        self.page.exchanging(|| self.inner.broadcast(tensor, root))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.page.exchanging(|| self.inner.barrier())
    }

    fn abort(&self) {
        self.inner.abort();
    }

    fn reducer(
        &self,
        parameters: &[Tensor],
        options: ReduceOptions,
    ) -> Result<Box<dyn GradientReducer>, CommError> {
        self.inner.reducer(parameters, options)
    }
}
