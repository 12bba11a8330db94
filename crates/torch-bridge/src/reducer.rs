//! Gradients that cross ranks while the backward pass still runs: c10d's `Reducer`.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{BridgeError, checked};
use crate::group::Communicator;
use crate::sys::{self, RawReducer};

/// What one reduction sent, and how long it took.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reduction {
    /// Bytes of gradients that this rank handed to the all-reduce.
    pub bytes: u64,
    /// Seconds in which at least one message was under way, waiting for slower ranks included.
    pub busy_seconds: f64,
    /// The part of them in which this rank had nothing left to compute.
    pub exposed_seconds: f64,
}

impl Reduction {
    /// The part of [`Self::busy_seconds`] in which this rank still computed.
    #[must_use]
    pub fn hidden_seconds(&self) -> f64 {
        self.busy_seconds - self.exposed_seconds
    }
}

/// c10d's `Reducer` over a fixed list of parameters. It hooks into their gradients for as long as it lives.
///
/// Parameters travel in buckets in the order in which they are given, never in another one: so a sum has the same bits in
/// every run with as many ranks. The gradients it leaves are views into its buckets.
pub struct Reducer {
    raw: *mut RawReducer,
}

impl Reducer {
    /// For `parameters` (trainable leaves on the group's device), in messages of about `bucket_bytes`; with `bf16` they
    /// are rounded to it on the way. Every rank gives the same shapes in the same order: those whose gradients are there
    /// first come first.
    ///
    /// # Errors
    /// [`BridgeError::Torch`] where a rank has other parameters, [`BridgeError::PeerGone`], [`BridgeError::TimedOut`].
    pub fn new(
        communicator: &Communicator,
        parameters: &[Tensor],
        bucket_bytes: usize,
        bf16: bool,
    ) -> Result<Self, BridgeError> {
        let parameters: Vec<*const C_tensor> = parameters.iter().map(Tensor::as_ptr).collect();
        let bucket_bytes = i64::try_from(bucket_bytes).unwrap_or(i64::MAX);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live group and `parameters.len()` live tensors, which the shim shares; `raw` is set on success.
        checked(|message| unsafe {
            sys::bridge_reducer_open(
                communicator.as_ptr(),
                parameters.as_ptr(),
                parameters.len(),
                bucket_bytes,
                c_int::from(bf16),
                &raw mut raw,
                message,
            )
        })?;
        Ok(Self { raw })
    }

    /// The backward pass of a micro-batch that others of the same step follow: nothing travels.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<(), BridgeError> {
        // SAFETY: a live reducer and a live tensor.
        checked(|message| unsafe { sys::bridge_reducer_accumulate(self.raw, loss.as_ptr(), message) })
    }

    /// The backward pass of a step's last micro-batch. Behind it gradients hold the mean over ranks of what was
    /// accumulated; one that no rank's loss reached since the last reduction is left as it was.
    ///
    /// `ready` is called once, from whatever thread computes, when this rank has nothing left but to wait for others.
    ///
    /// # Errors
    /// [`BridgeError::PeerGone`], [`BridgeError::TimedOut`]; the gradients are then undefined.
    pub fn reduce(&mut self, loss: &Tensor, ready: &(dyn Fn() + Sync)) -> Result<Reduction, BridgeError> {
        let mut reduction = Reduction::default();
        // A thin pointer to the fat one.
        let context = (&raw const ready).cast_mut().cast::<c_void>();
        // SAFETY: a live reducer and a live tensor; `ready` outlives the call and is not called after it.
        checked(|message| unsafe {
            sys::bridge_reducer_reduce(self.raw, loss.as_ptr(), call, context, &raw mut reduction, message)
        })?;
        Ok(reduction)
    }
}

/// Runs the closure for the shim; a panic does not cross into C++, and nothing depends on what it was to tell.
unsafe extern "C" fn call(context: *mut c_void) {
    // SAFETY: the shim passes back what `reduce` gave it, while `reduce` runs.
    let ready = unsafe { *context.cast::<&(dyn Fn() + Sync)>() };
    let _ = catch_unwind(AssertUnwindSafe(ready));
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by `bridge_reducer_open`, freed once.
        unsafe { sys::bridge_reducer_free(self.raw) }
    }
}
