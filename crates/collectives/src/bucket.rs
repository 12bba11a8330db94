//! Many tensors in few messages.

use tch::{Tensor, no_grad};

use crate::error::CommError;
use crate::group::ProcessGroup;

/// Averages `tensors` over ranks in place; returns the bytes that were reduced (4 for each fp32 element), which a world of
/// one counts too.
///
/// Neighbours of one dtype travel together in messages of about `bucket_bytes`, so every rank must give the same shapes
/// in the same order.
///
/// # Errors
/// As [`ProcessGroup::all_reduce_sum`].
pub fn all_reduce_mean_bucketed(
    group: &dyn ProcessGroup,
    tensors: &[Tensor],
    bucket_bytes: usize,
) -> Result<u64, CommError> {
    if group.world_size() > 1 {
        for bucket in buckets(tensors, bucket_bytes) {
            no_grad(|| reduce(group, bucket))?;
        }
    }
    Ok(tensors.iter().map(|tensor| bytes(tensor) as u64).sum())
}

/// Cuts `tensors` where the dtype changes or the next tensor would pass `limit` bytes. One larger tensor goes alone.
fn buckets(tensors: &[Tensor], limit: usize) -> impl Iterator<Item = &[Tensor]> {
    let mut filled = 0;
    tensors.chunk_by(move |before, next| {
        filled += bytes(before);
        let together = before.kind() == next.kind() && filled + bytes(next) <= limit;
        if !together {
            filled = 0;
        }
        together
    })
}

fn reduce(group: &dyn ProcessGroup, bucket: &[Tensor]) -> Result<(), CommError> {
    if let [alone] = bucket
        && alone.is_contiguous()
    {
        // A large tensor is a message already: it is reduced where it lies.
        let mut message = alone.detach();
        group.all_reduce_sum(&mut message)?;
        let _ = message.g_div_scalar_(group.world_size() as f64);
        return Ok(());
    }
    let flat: Vec<Tensor> = bucket.iter().map(|tensor| tensor.detach().reshape([-1])).collect();
    let mut message = Tensor::cat(&flat, 0);
    group.all_reduce_sum(&mut message)?;
    let _ = message.g_div_scalar_(group.world_size() as f64);
    let sizes: Vec<i64> = flat.iter().map(|tensor| tensor.numel() as i64).collect();
    for (tensor, mean) in bucket.iter().zip(message.split_with_sizes(&sizes, 0)) {
        tensor.detach().copy_(&mean.view_as(tensor));
    }
    Ok(())
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::buckets;

    fn lengths(tensors: &[Tensor], limit: usize) -> Vec<usize> {
        buckets(tensors, limit).map(<[Tensor]>::len).collect()
    }

    #[test]
    fn buckets_end_at_the_limit_and_at_another_dtype() {
        let zeros = |n: i64, kind| Tensor::zeros([n], (kind, Device::Cpu));
        let tensors = [
            zeros(4, Kind::Float),
            zeros(4, Kind::Float),
            zeros(1, Kind::Float),
            zeros(100, Kind::Float),
            zeros(1, Kind::Float),
            zeros(2, Kind::Half),
            zeros(2, Kind::Half),
        ];
        assert_eq!(lengths(&tensors, 32), [2, 1, 1, 1, 2]);
        assert_eq!(lengths(&tensors, 1 << 20), [5, 2]);
        assert_eq!(lengths(&tensors, 0), [1; 7]);
        assert!(lengths(&[], 32).is_empty());
    }
}
