//! Gradient checkpointing: memory for time.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::checked;
use crate::sys;

/// A piece of a forward pass: a fixed number of tensors out of some tensors.
type Piece = dyn Fn(&[Tensor]) -> Vec<Tensor> + Send;

/// `piece(inputs)`, of which autograd keeps the inputs alone: the backward pass computes the rest again (Chen et al. 2016,
/// arXiv 1604.06174). Time of one forward more, memory of one piece at a time.
///
/// `piece` gives `outputs` tensors and must compute the same each time: it sees the same autocast and the same random
/// numbers, those of the inputs' device. `parameters` are the trainable tensors that it uses and that are not among the
/// inputs; their gradients arrive as always. What else it captures gets no gradient.
///
/// # Panics
/// As tch's operations do, and where `piece` does or gives another number of tensors.
pub fn recomputed(
    inputs: &[&Tensor],
    parameters: &[&Tensor],
    outputs: usize,
    piece: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + 'static,
) -> Vec<Tensor> {
    // A thin pointer to the fat one.
    let closure: Box<Box<Piece>> = Box::new(Box::new(piece));
    let closure = Box::into_raw(closure).cast::<c_void>();
    let (inputs, parameters) = (pointers(inputs), pointers(parameters));
    let mut results: Vec<Tensor> = (0..outputs).map(|_| Tensor::new()).collect();
    let places: Vec<*mut C_tensor> = results.iter_mut().map(Tensor::as_mut_ptr).collect();
    // SAFETY: live tensors in four lists of the given lengths; the shim takes over the closure and drops it once.
    let made = checked(|message| unsafe {
        sys::bridge_recomputed(
            closure,
            call,
            drop_closure,
            inputs.as_ptr(),
            inputs.len(),
            parameters.as_ptr(),
            parameters.len(),
            places.as_ptr(),
            places.len(),
            message,
        )
    });
    if let Err(error) = made {
        panic!("{error}");
    }
    results
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}

/// Runs the closure for the shim. A panic does not cross into C++: it is an error there, and a panic again here.
unsafe extern "C" fn call(
    closure: *mut c_void,
    inputs: *const *mut C_tensor,
    inputs_len: usize,
    outputs: *const *mut C_tensor,
    outputs_len: usize,
) -> c_int {
    let run = || {
        // SAFETY: the shim passes back what `recomputed` gave it, and lists of live tensors of the given lengths.
        let (piece, inputs, outputs) = unsafe {
            (
                &*closure.cast::<Box<Piece>>(),
                slice::from_raw_parts(inputs, inputs_len),
                slice::from_raw_parts(outputs, outputs_len),
            )
        };
        // SAFETY: each is a live tensor of the shim's, which the clone shares.
        let inputs: Vec<Tensor> =
            inputs.iter().map(|&tensor| unsafe { Tensor::clone_from_ptr(tensor) }).collect();
        let results = piece(&inputs);
        assert_eq!(results.len(), outputs.len(), "tensors out of a recomputed piece");
        for (&place, result) in outputs.iter().zip(&results) {
            // SAFETY: both are live tensors; the place then shares what the result owns.
            unsafe { sys::bridge_share(place, result.as_ptr()) };
        }
    };
    // Nothing that the closure leaves half done is seen by anybody: the caller panics.
    c_int::from(catch_unwind(AssertUnwindSafe(run)).is_err())
}

unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `recomputed`, and the shim drops it once.
    drop(unsafe { Box::from_raw(closure.cast::<Box<Piece>>()) });
}
