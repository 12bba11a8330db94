//! Between host tensors (checkpoints, weight files) and libtorch's.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{CheckpointError, Dtype, HostTensor, TensorFile, TensorInfo, TensorMap};
use model::Weights;
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// A copy of `host` on the CPU.
pub fn to_torch(host: &HostTensor) -> Tensor {
    let shape: Vec<i64> = host.shape.iter().map(|&n| n as i64).collect();
    Tensor::from_data_size(&host.bytes, &shape, kind(host.dtype))
}

/// A copy of `tensor`, whatever its device.
#[must_use]
pub fn to_host(tensor: &Tensor) -> HostTensor {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let count = tensor.numel();
    let mut bytes = vec![0; count * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, count);
    HostTensor {
        dtype: dtype(tensor.kind()),
        shape: tensor.size().iter().map(|&n| n as usize).collect(),
        bytes,
    }
}

/// Every tensor of a safetensors file.
///
/// # Errors
/// [`TrainError::Read`] or [`TrainError::Weights`] naming the file.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let map = checkpoint::read_safetensors(path).map_err(|error| not_read(error, path))?;
    Ok(all_to_torch(&map))
}

fn not_read(error: CheckpointError, path: &Path) -> TrainError {
    match error {
        CheckpointError::Io { path, source, .. } => TrainError::Read { path, source },
        other => TrainError::Weights { path: path.to_owned(), detail: other.to_string() },
    }
}

/// The tensors of a safetensors file, each of which is read when a model takes it.
///
/// # Errors
/// As [`read`], where the header cannot be read.
pub fn in_file(path: &Path) -> Result<Weights, TrainError> {
    let mut file = TensorFile::open(path).map_err(|error| not_read(error, path))?;
    let shape = |info: &TensorInfo| info.shape.iter().map(|&n| n as i64).collect();
    let shapes: Vec<(String, Vec<i64>)> =
        file.header().tensors.iter().map(|(name, info)| (name.clone(), shape(info))).collect();
    Ok(Weights::in_file(shapes, move |name| match file.read(name) {
        Ok(Some(host)) => Ok(to_torch(&host)),
        Ok(None) => Err("the header does not have it".into()),
        Err(error) => Err(error.to_string()),
    }))
}

/// Every tensor of the map.
#[must_use]
pub fn all_to_torch(map: &TensorMap) -> BTreeMap<String, Tensor> {
    map.iter().map(|(name, host)| (name.clone(), to_torch(host))).collect()
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    }
}

fn dtype(kind: Kind) -> Dtype {
    match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::Bool,
        other => unreachable!("no part of a run keeps {other:?} tensors"),
    }
}
