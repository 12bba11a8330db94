//! The fused AdamW update.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::checked;
use crate::sys;

/// Hyperparameters of one AdamW update (Loshchilov and Hutter, arXiv 1711.05101; names as in `torch.optim.AdamW`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Updates done, this one counted: the first is 1. Exact up to 2^24, as in PyTorch.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay: weights shrink by `1 - lr * weight_decay` first.
    pub weight_decay: f64,
    /// Gradients are divided by this on the way: 1, or what clipping asks for. It saves a pass over all of them.
    pub grad_divisor: f64,
}

/// Updates `params`, `exp_avg` and `exp_avg_sq` in place, all in one call, outside autograd.
///
/// Tensor `i` of each list has the same shape; moments have the dtype and memory layout of their parameter. The formula
/// is `torch.optim.AdamW`'s: decoupled decay, bias correction, `eps` outside the root.
///
/// # Panics
/// As tch's operations do: lists of different length, or tensors that do not match.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avg: &[Tensor],
    exp_avg_sq: &[Tensor],
    hyper: &AdamWStep,
) {
    let lengths = [grads.len(), exp_avg.len(), exp_avg_sq.len()];
    assert_eq!(
        lengths,
        [params.len(); 3],
        "gradients and moments, one for each of {} parameters",
        params.len()
    );
    let (params, grads) = (pointers(params), pointers(grads));
    let (exp_avg, exp_avg_sq) = (pointers(exp_avg), pointers(exp_avg_sq));
    // SAFETY: four lists of `params.len()` live tensors; the shim checks shapes and layouts and keeps no pointer.
    let updated = checked(|message| unsafe {
        sys::bridge_fused_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avg.as_ptr(),
            exp_avg_sq.as_ptr(),
            params.len(),
            hyper,
            message,
        )
    });
    if let Err(error) = updated {
        panic!("{error}");
    }
}

/// Forgets the gradients of `params`: the next backward pass then puts its own in their place, where after zeroing it
/// would have to add to them. All of the memory is read and written twice less.
///
/// # Panics
/// Never for tensors that live.
pub fn drop_gradients(params: &[Tensor]) {
    let params = pointers(params);
    // SAFETY: a list of `params.len()` live tensors, of which the shim keeps no pointer.
    let dropped =
        checked(|message| unsafe { sys::bridge_drop_gradients(params.as_ptr(), params.len(), message) });
    if let Err(error) = dropped {
        panic!("{error}");
    }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}
