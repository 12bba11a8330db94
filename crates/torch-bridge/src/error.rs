//! C++ exceptions as values.

use std::ffi::{CStr, c_char, c_int};

use crate::sys;

/// What libtorch threw, sorted by what the caller can do about it. The text is libtorch's own.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No memory left on the device: lower the batch size.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A peer did not answer in time: look whether it hangs, then restart all ranks.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// A peer's connection is gone: restart all ranks.
    #[error("a connection broke: {0}")]
    PeerGone(String),
    /// The rendezvous store answers with an error: restart all ranks with a fresh store.
    #[error("rendezvous store: {0}")]
    Store(String),
    /// NCCL or Gloo failed: see the text.
    #[error("communication backend: {0}")]
    Backend(String),
    /// libtorch refused the arguments, which is an error in our code.
    #[error("libtorch: {0}")]
    Torch(String),
    /// This libtorch was built without what is asked for: install the other variant.
    #[error("not in this libtorch: {0}")]
    Unsupported(String),
}

impl BridgeError {
    /// Code as in `cpp/failure.h`.
    fn from_code(code: c_int, text: String) -> Self {
        match code {
            2 => Self::OutOfMemory(text),
            3 => Self::TimedOut(text),
            4 => Self::PeerGone(text),
            5 => Self::Store(text),
            6 => Self::Backend(text),
            _ => Self::Torch(text),
        }
    }
}

/// Runs one call of the shim, which gets the place for its error message.
pub(crate) fn checked(call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), BridgeError> {
    let mut message = std::ptr::null_mut();
    let code = call(&raw mut message);
    if code == 0 {
        return Ok(());
    }
    if message.is_null() {
        return Err(BridgeError::OutOfMemory("even the error message found none".into()));
    }
    // SAFETY: on failure the shim leaves a NUL-terminated text that it malloc'ed and that we free, once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().trim_end().to_owned();
        sys::bridge_free_message(message);
        text
    };
    Err(BridgeError::from_code(code, text))
}
