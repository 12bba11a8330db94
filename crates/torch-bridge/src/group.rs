//! Collective operations between processes.

use std::ffi::c_int;
use std::time::Duration;

use tch::Tensor;

use crate::error::{BridgeError, checked};
use crate::store::{Store, c_text, millis};
use crate::sys::{self, RawGathering, RawGroup};

/// A process's place in a group that is being made.
pub struct Membership<'a> {
    /// Where the ranks meet.
    pub store: &'a Store,
    /// Keeps the keys of this group from those of others in the same store.
    pub prefix: &'a str,
    /// This process, from 0.
    pub rank: usize,
    /// Processes in all.
    pub world_size: usize,
    /// Within which all ranks must have come.
    pub init_timeout: Duration,
    /// Within which each operation must end.
    pub op_timeout: Duration,
}

/// A c10d process group. Every rank calls the same operations in the same order; each returns when it is complete.
pub struct Communicator {
    raw: *mut RawGroup,
    world_size: i64,
}

// SAFETY: c10d's backends may be called from any one thread at a time; they are not bound to the one that made them.
unsafe impl Send for Communicator {}

impl Communicator {
    /// A Gloo group for CPU tensors, which listens on `host` (a name or address of this machine) and nowhere else.
    ///
    /// # Errors
    /// [`BridgeError::TimedOut`] or [`BridgeError::PeerGone`] where a rank does not come.
    pub fn gloo(member: &Membership<'_>, host: &str) -> Result<Self, BridgeError> {
        let (prefix, host) = (c_text(member.prefix)?, c_text(host)?);
        let mut raw = std::ptr::null_mut();
        // SAFETY: all pointers outlive the call; `raw` is writable and set on success.
        checked(|message| unsafe {
            sys::bridge_gloo_open(
                member.store.as_ptr(),
                prefix.as_ptr(),
                member.rank as c_int,
                member.world_size as c_int,
                host.as_ptr(),
                millis(member.init_timeout),
                millis(member.op_timeout),
                &raw mut raw,
                message,
            )
        })?;
        Ok(Self { raw, world_size: member.world_size as i64 })
    }

    /// An NCCL group for tensors on GPU `device_index`. Peers are met at the first operation; one that hangs past the
    /// group's timeout ends the process through c10d's watchdog.
    ///
    /// # Errors
    /// [`BridgeError::Unsupported`] where this libtorch has no CUDA, else what c10d says.
    #[cfg(nccl)]
    pub fn nccl(member: &Membership<'_>, device_index: usize) -> Result<Self, BridgeError> {
        let prefix = c_text(member.prefix)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: all pointers outlive the call; `raw` is writable and set on success.
        checked(|message| unsafe {
            sys::bridge_nccl_open(
                member.store.as_ptr(),
                prefix.as_ptr(),
                member.rank as c_int,
                member.world_size as c_int,
                device_index as c_int,
                millis(member.op_timeout),
                &raw mut raw,
                message,
            )
        })?;
        Ok(Self { raw, world_size: member.world_size as i64 })
    }

    /// An NCCL group, which this libtorch does not have.
    ///
    /// # Errors
    /// [`BridgeError::Unsupported`].
    #[cfg(not(nccl))]
    pub fn nccl(_member: &Membership<'_>, device_index: usize) -> Result<Self, BridgeError> {
        Err(BridgeError::Unsupported(format!(
            "NCCL for GPU {device_index}; install the CUDA variant (scripts/setup --cuda)"
        )))
    }

    /// Sums `tensor` over ranks, in place. Same shape and dtype on every rank.
    ///
    /// # Errors
    /// [`BridgeError::PeerGone`], [`BridgeError::TimedOut`]; the tensor is then undefined.
    pub fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), BridgeError> {
        self.in_place(tensor, |group, t, message| {
            // SAFETY: a live group and a live, contiguous tensor.
            unsafe { sys::bridge_all_reduce_sum(group, t.as_ptr(), message) }
        })
    }

    /// Copies `tensor` of rank `root` into every rank's, in place. Same shape and dtype on every rank.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), BridgeError> {
        self.in_place(tensor, |group, t, message| {
            // SAFETY: a live group and a live, contiguous tensor.
            unsafe { sys::bridge_broadcast(group, t.as_ptr(), root as c_int, message) }
        })
    }

    /// `tensor` `[B, ...]` of every rank in rank order, `[world_size * B, ...]`, without gradient. Same shape and dtype on
    /// every rank; a scalar counts as `[1]`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, BridgeError> {
        let own = tensor.detach().contiguous();
        let own = if own.dim() == 0 { own.view([1]) } else { own };
        let mut shape = own.size();
        shape[0] *= self.world_size;
        let gathered = Tensor::empty(shape.as_slice(), (own.kind(), own.device()));
        // SAFETY: a live group; two live, contiguous tensors, the first `world_size` times the second.
        checked(|message| unsafe {
            sys::bridge_all_gather(self.raw, gathered.as_ptr(), own.as_ptr(), message)
        })?;
        Ok(gathered)
    }

    /// [`Communicator::all_gather`] into `gathered`, contiguous, that returns while the message is under way. Other operations of
    /// the group may be called meanwhile, in the same order on every rank; neither tensor is to be touched before the end.
    ///
    /// # Errors
    /// What libtorch says at once; what goes wrong later is told by [`Gathering::finish`].
    pub fn start_all_gather(&self, tensor: &Tensor, gathered: &Tensor) -> Result<Gathering, BridgeError> {
        let (own, gathered) = (tensor.detach().contiguous(), gathered.detach());
        let is_room = gathered.numel() == own.numel() * self.world_size as usize && gathered.is_contiguous();
        if !is_room || gathered.kind() != own.kind() {
            let text = format!("{own:?} of {} ranks gathered into {gathered:?}", self.world_size);
            return Err(BridgeError::Torch(text));
        }
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live group; two live, contiguous tensors, which the work shares; `raw` is set on success.
        checked(|message| unsafe {
            sys::bridge_gather_start(self.raw, gathered.as_ptr(), own.as_ptr(), &raw mut raw, message)
        })?;
        Ok(Gathering { raw, gathered })
    }

    /// Rows of `tensor` `[sum(to), ...]` to each rank: the first `to[0]` to rank 0, the next `to[1]` to rank 1. What comes,
    /// `from[r]` rows of rank r, lies in rank order, `[sum(from), ...]`, without gradient.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`]; [`BridgeError::Torch`] where `to` and `from` are not one number a rank.
    pub fn all_to_all(&self, tensor: &Tensor, to: &[i64], from: &[i64]) -> Result<Tensor, BridgeError> {
        let ranks = self.world_size as usize;
        if to.len() != ranks || from.len() != ranks {
            let text = format!("{} and {} counts of rows for {ranks} ranks", to.len(), from.len());
            return Err(BridgeError::Torch(text));
        }
        let own = tensor.detach().contiguous();
        let mut shape = own.size();
        shape[0] = from.iter().sum();
        let received = Tensor::empty(shape.as_slice(), (own.kind(), own.device()));
        // SAFETY: a live group; two live, contiguous tensors; two lists of `world_size` numbers.
        checked(|message| unsafe {
            let (output, input) = (received.as_ptr(), own.as_ptr());
            sys::bridge_all_to_all(self.raw, output, input, from.as_ptr(), to.as_ptr(), message)
        })?;
        Ok(received)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn barrier(&self) -> Result<(), BridgeError> {
        // SAFETY: a live group.
        checked(|message| unsafe { sys::bridge_barrier(self.raw, message) })
    }

    /// Closes all connections: what is under way fails, here and on peers that wait for this rank. The group is of no more
    /// use.
    pub fn abort(&self) {
        // SAFETY: a live group.
        unsafe { sys::bridge_group_abort(self.raw) }
    }

    pub(crate) fn as_ptr(&self) -> *const RawGroup {
        self.raw
    }

    /// c10d walks raw memory: it gets a contiguous tensor outside autograd, and a strided one gets the result copied.
    fn in_place(
        &self,
        tensor: &mut Tensor,
        call: impl FnOnce(*const RawGroup, &Tensor, *mut *mut std::ffi::c_char) -> c_int,
    ) -> Result<(), BridgeError> {
        let mut target = tensor.detach();
        let contiguous = target.contiguous();
        checked(|message| call(self.raw, &contiguous, message))?;
        if !target.is_contiguous() {
            target.copy_(&contiguous);
        }
        Ok(())
    }
}

/// An all-gather under way.
pub struct Gathering {
    raw: *mut RawGathering,
    gathered: Tensor,
}

// SAFETY: c10d's work guards itself with a mutex and is not bound to the thread that made it.
unsafe impl Send for Gathering {}

impl Gathering {
    /// Waits for the message: the place that was given, filled.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    pub fn finish(self) -> Result<Tensor, BridgeError> {
        // SAFETY: made by `bridge_gather_start`, not yet freed.
        checked(|message| unsafe { sys::bridge_gather_finish(self.raw, message) })?;
        Ok(self.gathered.shallow_clone())
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        // SAFETY: made by `bridge_gather_start`, freed once.
        unsafe { sys::bridge_gather_free(self.raw) }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: made by `bridge_*_open`, freed once.
        unsafe { sys::bridge_group_free(self.raw) }
    }
}
