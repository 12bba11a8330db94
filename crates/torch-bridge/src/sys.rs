//! The C side, as `cpp/*.cpp` defines it.

use std::ffi::{c_char, c_int, c_void};
use std::marker::{PhantomData, PhantomPinned};

use torch_sys::C_tensor;

use crate::adamw::AdamWStep;
use crate::reducer::Reduction;

/// `BridgeStore` of `cpp/group.h`.
#[repr(C)]
pub(crate) struct RawStore {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `BridgeGroup` of `cpp/group.h`.
#[repr(C)]
pub(crate) struct RawGroup {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `BridgeGathering` of `cpp/group.h`.
#[repr(C)]
pub(crate) struct RawGathering {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `BridgeUpload` of `cpp/upload.cpp`.
#[repr(C)]
pub(crate) struct RawUpload {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `BridgeReducer` of `cpp/reducer.cpp`.
#[repr(C)]
pub(crate) struct RawReducer {
    _opaque: [u8; 0],
    _not_send: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `BridgeAutocastState` of `cpp/compute.cpp`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct AutocastState {
    device_type: c_int,
    enabled: c_int,
    dtype: c_int,
}

/// `Call` of `cpp/recompute.cpp`.
pub(crate) type RecomputeCall = unsafe extern "C" fn(
    closure: *mut c_void,
    inputs: *const *mut C_tensor,
    inputs_len: usize,
    outputs: *const *mut C_tensor,
    outputs_len: usize,
) -> c_int;

// Every function that returns `c_int` gives 0, or a code of `cpp/failure.h` and then a malloc'ed text in `message`.
unsafe extern "C" {
    pub(crate) fn bridge_free_message(message: *mut c_char);

    pub(crate) fn bridge_fused_adamw(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first_moments: *const *const C_tensor,
        second_moments: *const *const C_tensor,
        count: usize,
        hyper: *const AdamWStep,
        message: *mut *mut c_char,
    ) -> c_int;

    pub(crate) fn bridge_recomputed(
        closure: *mut c_void,
        call: RecomputeCall,
        drop: unsafe extern "C" fn(*mut c_void),
        inputs: *const *const C_tensor,
        inputs_len: usize,
        parameters: *const *const C_tensor,
        parameters_len: usize,
        outputs: *const *mut C_tensor,
        outputs_len: usize,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_share(to: *mut C_tensor, from: *const C_tensor);

    pub(crate) fn bridge_drop_gradients(
        parameters: *const *const C_tensor,
        count: usize,
        message: *mut *mut c_char,
    ) -> c_int;

    pub(crate) fn bridge_autocast_enter(
        device_type: c_int,
        dtype: c_int,
        previous: *mut AutocastState,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_autocast_leave(previous: *const AutocastState, message: *mut *mut c_char) -> c_int;

    pub(crate) fn bridge_upload_start(
        host: *const C_tensor,
        device_index: c_int,
        out: *mut *mut RawUpload,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_upload_finish(
        upload: *const RawUpload,
        to: *mut C_tensor,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_upload_free(upload: *mut RawUpload);

    pub(crate) fn bridge_store_open(
        host: *const c_char,
        port: u16,
        listen_fd: c_int,
        world_size: usize,
        timeout_ms: u64,
        out: *mut *mut RawStore,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_store_free(store: *mut RawStore);

    pub(crate) fn bridge_gloo_open(
        store: *const RawStore,
        prefix: *const c_char,
        rank: c_int,
        world_size: c_int,
        host: *const c_char,
        init_timeout_ms: u64,
        op_timeout_ms: u64,
        out: *mut *mut RawGroup,
        message: *mut *mut c_char,
    ) -> c_int;
    #[cfg(nccl)]
    pub(crate) fn bridge_nccl_open(
        store: *const RawStore,
        prefix: *const c_char,
        rank: c_int,
        world_size: c_int,
        device_index: c_int,
        op_timeout_ms: u64,
        out: *mut *mut RawGroup,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_group_abort(group: *const RawGroup);
    pub(crate) fn bridge_group_free(group: *mut RawGroup);

    pub(crate) fn bridge_all_reduce_sum(
        group: *const RawGroup,
        tensor: *const C_tensor,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_all_gather(
        group: *const RawGroup,
        output: *const C_tensor,
        input: *const C_tensor,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_gather_start(
        group: *const RawGroup,
        output: *const C_tensor,
        input: *const C_tensor,
        out: *mut *mut RawGathering,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_gather_finish(gathering: *const RawGathering, message: *mut *mut c_char) -> c_int;
    pub(crate) fn bridge_gather_free(gathering: *mut RawGathering);
    pub(crate) fn bridge_broadcast(
        group: *const RawGroup,
        tensor: *const C_tensor,
        root: c_int,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_all_to_all(
        group: *const RawGroup,
        output: *const C_tensor,
        input: *const C_tensor,
        output_rows: *const i64,
        input_rows: *const i64,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_barrier(group: *const RawGroup, message: *mut *mut c_char) -> c_int;

    pub(crate) fn bridge_reducer_open(
        group: *const RawGroup,
        parameters: *const *const C_tensor,
        count: usize,
        bucket_bytes: i64,
        bf16: c_int,
        out: *mut *mut RawReducer,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_reducer_free(reducer: *mut RawReducer);
    pub(crate) fn bridge_reducer_accumulate(
        reducer: *const RawReducer,
        loss: *const C_tensor,
        message: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn bridge_reducer_reduce(
        reducer: *const RawReducer,
        loss: *const C_tensor,
        ready: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        out: *mut Reduction,
        message: *mut *mut c_char,
    ) -> c_int;
}
