//! What ranks must see alike before they go on together.

use std::collections::BTreeMap;
use std::path::Path;

use collectives::{CommError, ProcessGroup};
use tch::{Device, Tensor};

use crate::error::TrainError;
use crate::tensors::to_host;

/// True on every rank where all ranks hold the numbers `own`, which are as many on each.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn same(group: &dyn ProcessGroup, own: &[i64]) -> Result<bool, CommError> {
    let all = group.all_gather(&Tensor::from_slice(own).to_device(group.device()))?;
    let all = Vec::<i64>::try_from(all.to_device(Device::Cpu)).unwrap_or_default();
    Ok(all.chunks(own.len()).all(|one| one == own))
}

/// True on every rank where `own` is true on all of them.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn all(group: &dyn ProcessGroup, own: bool) -> Result<bool, CommError> {
    let mut against = Tensor::from_slice(&[f32::from(u8::from(!own))]).to_device(group.device());
    group.all_reduce_sum(&mut against)?;
    Ok(against.double_value(&[0]) == 0.0)
}

/// Rank 0's number, on every rank.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn from_rank0(group: &dyn ProcessGroup, own: f64) -> Result<f64, CommError> {
    let mut number = Tensor::from_slice(&[own]).to_device(group.device());
    group.broadcast(&mut number, 0)?;
    Ok(number.double_value(&[0]))
}

/// As [`same`], for a name of any length.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn same_name(group: &dyn ProcessGroup, name: &[u8]) -> Result<bool, CommError> {
    let digest = blake3::hash(name);
    let own: Vec<i64> = digest.as_bytes().iter().take(8).map(|&byte| i64::from(byte)).collect();
    same(group, &own)
}

/// As [`same`], for weights by name: names, sizes and every bit.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn same_weights(
    group: &dyn ProcessGroup,
    own: &BTreeMap<String, Tensor>,
) -> Result<bool, CommError> {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in own {
        hasher.update(format!("{name} {:?}", tensor.size()).as_bytes()).update(&to_host(tensor).bytes);
    }
    same_name(group, hasher.finalize().as_bytes())
}

/// All ranks stand at the same step of the phase whose checkpoints are in `dir`. On a shared disk that is slow to tell, one
/// rank could find an older checkpoint; its gradients would then be of another model.
///
/// # Errors
/// [`TrainError::NotShared`] where they do not; a lost peer.
pub(crate) fn on_step(group: &dyn ProcessGroup, step: u64, dir: &Path) -> Result<(), TrainError> {
    if same(group, &[step as i64])? {
        return Ok(());
    }
    let rank = group.rank();
    let detail = format!("rank {rank} finds step {step}, others find other steps: all ranks need one disk");
    Err(TrainError::NotShared { path: dir.to_owned(), detail })
}

/// The bytes of every rank, in rank order; they may be of any number.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn gather_bytes(group: &dyn ProcessGroup, own: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
    let length = Tensor::from_slice(&[own.len() as i64]).to_device(group.device());
    let lengths = group.all_gather(&length)?.to_device(Device::Cpu);
    let lengths = Vec::<i64>::try_from(lengths).unwrap_or_default();
    let longest = lengths.iter().copied().max().unwrap_or_default().max(1) as usize;
    let mut padded = own.to_vec();
    padded.resize(longest, 0);
    let all = group.all_gather(&Tensor::from_slice(&padded).to_device(group.device()))?;
    let all = Vec::<u8>::try_from(all.to_device(Device::Cpu)).unwrap_or_default();
    Ok(all.chunks(longest).zip(lengths).map(|(bytes, length)| bytes[..length as usize].to_vec()).collect())
}

/// The bytes of rank `root`, on every rank.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn broadcast_bytes(
    group: &dyn ProcessGroup,
    root: usize,
    own: Vec<u8>,
) -> Result<Vec<u8>, CommError> {
    let mut length = Tensor::from_slice(&[own.len() as i64]).to_device(group.device());
    group.broadcast(&mut length, root)?;
    let mut bytes = own;
    bytes.resize(length.int64_value(&[0]).unsigned_abs() as usize, 0);
    let mut sent = Tensor::from_slice(&bytes).to_device(group.device());
    group.broadcast(&mut sent, root)?;
    Ok(Vec::<u8>::try_from(sent.to_device(Device::Cpu)).unwrap_or_default())
}

/// The union of all ranks' lists of samples, ascending.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub(crate) fn union(
    group: &dyn ProcessGroup,
    samples: usize,
    own: &[usize],
) -> Result<Vec<usize>, CommError> {
    let mut flags = vec![0f32; samples];
    for &sample in own {
        flags[sample] = 1.0;
    }
    let mut flags = Tensor::from_slice(&flags).to_device(group.device());
    group.all_reduce_sum(&mut flags)?;
    let flags = Vec::<f32>::try_from(flags.to_device(Device::Cpu)).unwrap_or_default();
    Ok((0..samples).filter(|&sample| flags[sample] > 0.0).collect())
}
