//! Copies from the host to a CUDA device beside what it computes.

use tch::Tensor;

use crate::error::checked;
use crate::sys::{self, RawUpload};

/// A tensor on its way to a CUDA device: out of page-locked memory, on a stream of its own.
pub struct Upload {
    raw: *mut RawUpload,
}

impl Upload {
    /// Begins to copy `host` to CUDA device `index`; the host waits for its own copy into page-locked memory alone.
    ///
    /// # Panics
    /// As tch's operations do: no such device, no memory.
    #[must_use]
    pub fn start(host: &Tensor, index: usize) -> Self {
        let index = index.try_into().unwrap_or(-1);
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live tensor, of which the shim keeps a copy; `raw` is set on success.
        let started = checked(|message| unsafe {
            sys::bridge_upload_start(host.as_ptr(), index, &raw mut raw, message)
        });
        match started {
            Ok(()) => Self { raw },
            Err(error) => panic!("{error}"),
        }
    }

    /// The tensor on the device. What the calling thread asks of the device from now on waits for the copy; the host does not.
    ///
    /// # Panics
    /// As tch's operations do.
    pub fn finish(self) -> Tensor {
        let mut tensor = Tensor::new();
        // SAFETY: made by `bridge_upload_start`, not yet freed; a live tensor that gets another value.
        let finished =
            checked(|message| unsafe { sys::bridge_upload_finish(self.raw, tensor.as_mut_ptr(), message) });
        match finished {
            Ok(()) => tensor,
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // SAFETY: made by `bridge_upload_start`, freed once.
        unsafe { sys::bridge_upload_free(self.raw) }
    }
}
