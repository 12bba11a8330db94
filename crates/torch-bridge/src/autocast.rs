//! Mixed precision by region.

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::error::{BridgeError, checked};
use crate::sys::{self, AutocastState};

/// Runs `f` with autocast to `dtype` on `device`'s kind of device; `None` = with autocast off.
///
/// As `torch.autocast`: matrix products run in `dtype`, what needs range in fp32. The state before comes back when `f`
/// returns or panics, and the casts of weights that were kept are dropped with the outermost region. Within one region
/// do not run the same trainable weights under `no_grad` first: PyTorch's cache would keep a cast without gradient.
///
/// # Panics
/// Where `dtype` is none that autocast knows, or the device has no autocast.
pub fn autocast<T>(device: Device, dtype: Option<Kind>, f: impl FnOnce() -> T) -> T {
    let _region = match Region::enter(device, dtype) {
        Ok(region) => region,
        Err(error) => panic!("autocast to {dtype:?} on {device:?}: {error}"),
    };
    f()
}

/// Autocast's state is of the thread, so a region must end where it began.
struct Region {
    previous: AutocastState,
    _of_this_thread: PhantomData<*const ()>,
}

impl Region {
    fn enter(device: Device, dtype: Option<Kind>) -> Result<Self, BridgeError> {
        let dtype = match dtype {
            None => -1,
            Some(kind) => scalar_type(kind)?,
        };
        let mut previous = AutocastState::default();
        // SAFETY: `previous` is writable for the length of the call.
        checked(|message| unsafe {
            sys::bridge_autocast_enter(device_type(device), dtype, &raw mut previous, message)
        })?;
        Ok(Self { previous, _of_this_thread: PhantomData })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `previous` came from `bridge_autocast_enter` on this thread.
        let left =
            checked(|message| unsafe { sys::bridge_autocast_leave(&raw const self.previous, message) });
        // It only sets thread-local numbers; a panic within a panic would abort.
        debug_assert!(left.is_ok(), "{left:?}");
    }
}

/// `c10::DeviceType`.
fn device_type(device: Device) -> c_int {
    match device {
        Device::Cpu => 0,
        Device::Cuda(_) => 1,
        Device::Vulkan => 10,
        Device::Mps => 13,
    }
}

/// `c10::ScalarType` of what autocast lowers to.
fn scalar_type(kind: Kind) -> Result<c_int, BridgeError> {
    match kind {
        Kind::Half => Ok(5),
        Kind::BFloat16 => Ok(15),
        other => Err(BridgeError::Torch(format!("{other:?} is no half precision; use BFloat16 or Half"))),
    }
}
