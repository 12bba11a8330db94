//! Where ranks leave their addresses for each other.

use std::ffi::{CString, c_int};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use crate::error::{BridgeError, checked};
use crate::sys::{self, RawStore};

/// A key-value store that all ranks reach (c10d's `TCPStore`). A process group keeps it alive for itself.
pub struct Store {
    raw: *mut RawStore,
}

// SAFETY: a TCPStore guards its socket with a mutex and is not bound to the thread that made it.
unsafe impl Send for Store {}

impl Store {
    /// Serves the store on `listener`, waits until `world_size` ranks (this one counted) have come.
    ///
    /// The listener is the caller's because TCPStore, given an address, listens on every interface.
    ///
    /// # Errors
    /// [`BridgeError::TimedOut`] naming how many came.
    pub fn serve(listener: TcpListener, world_size: usize, timeout: Duration) -> Result<Self, BridgeError> {
        let address = listener.local_addr().map_err(|e| BridgeError::Store(e.to_string()))?;
        // From here the store closes it.
        let fd = listener.into_raw_fd();
        Self::open(&address.ip().to_string(), address.port(), fd, world_size, timeout)
    }

    /// Joins the store at `host`:`port`, trying until `timeout`.
    ///
    /// # Errors
    /// [`BridgeError::TimedOut`] or [`BridgeError::PeerGone`] where nobody serves it.
    pub fn join(host: &str, port: u16, world_size: usize, timeout: Duration) -> Result<Self, BridgeError> {
        Self::open(host, port, -1, world_size, timeout)
    }

    fn open(
        host: &str,
        port: u16,
        listen_fd: c_int,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self, BridgeError> {
        let host = c_text(host)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `host` outlives the call; `raw` is writable and set on success.
        checked(|message| unsafe {
            sys::bridge_store_open(
                host.as_ptr(),
                port,
                listen_fd,
                world_size,
                millis(timeout),
                &raw mut raw,
                message,
            )
        })?;
        Ok(Self { raw })
    }

    pub(crate) fn as_ptr(&self) -> *const RawStore {
        self.raw
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `bridge_store_open`, freed once.
        unsafe { sys::bridge_store_free(self.raw) }
    }
}

pub(crate) fn c_text(text: &str) -> Result<CString, BridgeError> {
    CString::new(text).map_err(|_| BridgeError::Torch(format!("{text:?} holds a NUL byte")))
}

pub(crate) fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
