//! The ranks that hold a language model's layers together.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collectives::{CommError, Gathering, ProcessGroup};
use tch::{Device, Tensor};

/// Ranks each of which has a part of every layer, and a group for nothing else.
///
/// Layers are gathered in backward passes too, which return no errors: what fails is kept until somebody asks
/// ([`Peers::check`]), and from then on nothing is sent.
pub(super) struct Peers {
    pub rank: i64,
    pub world_size: i64,
    inner: Mutex<Inner>,
}

struct Inner {
    group: Box<dyn ProcessGroup>,
    failure: Option<CommError>,
    is_broken: bool,
}

impl Peers {
    pub fn new(group: Box<dyn ProcessGroup>) -> Arc<Self> {
        let (rank, world_size) = (group.rank() as i64, group.world_size() as i64);
        let inner = Mutex::new(Inner { group, failure: None, is_broken: false });
        Arc::new(Self { rank, world_size, inner })
    }

    /// Starts to gather a layer of which `own` `[bytes]` is this rank's part into `room`; `None` where a peer is gone.
    pub fn start(&self, own: &Tensor, room: &Tensor) -> Option<Gathering> {
        self.locked().attempt(|group| group.start_all_gather(own, room))
    }

    /// The whole layer, `[world_size * bytes]`; `None` where a peer is gone.
    pub fn finish(&self, gathering: Gathering) -> Option<Tensor> {
        // Without the lock: nobody else waits for this one.
        let gathered = gathering.finish();
        self.locked().attempt(|_| gathered)
    }

    /// Which stack of layers all ranks go through now: the first of those that any of them wants. `None` on every rank where
    /// none wants one, and here where a peer is gone.
    pub fn agree(&self, wanted: Option<usize>) -> Option<usize> {
        const NONE: i64 = i64::MAX;
        let own = Tensor::from_slice(&[wanted.map_or(NONE, |stack| stack as i64)]);
        let gathered = self.locked().attempt(|group| group.all_gather(&own.to_device(group.device())));
        let first = gathered?.to_device(Device::Cpu).min().int64_value(&[]);
        (first != NONE).then_some(first as usize)
    }

    /// # Errors
    /// What failed since this was asked last.
    pub fn check(&self) -> Result<(), CommError> {
        self.locked().failure.take().map_or(Ok(()), Err)
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn attempt<T>(&mut self, step: impl FnOnce(&dyn ProcessGroup) -> Result<T, CommError>) -> Option<T> {
        if self.is_broken {
            return None;
        }
        match step(self.group.as_ref()) {
            Ok(result) => Some(result),
            Err(error) => {
                self.failure = Some(error);
                self.is_broken = true;
                None
            }
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world_size)
    }
}
