//! Between host tensors (checkpoints, weight files) and libtorch's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use checkpoint::{CheckpointError, Dtype, HashedSource, HostTensor, TensorMap, WeightSource};
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

/// The weights of a folder in Hugging Face's layout, whole or in shards: table of contents first, then tensor by tensor.
pub struct WeightFolder {
    path: PathBuf,
    shapes: Vec<(String, Vec<i64>)>,
    source: Rc<RefCell<HashedSource>>,
}

impl WeightFolder {
    /// Opens what is there and checks that it fits together; no tensor is read.
    ///
    /// # Errors
    /// [`TrainError::Read`] or [`TrainError::Weights`] naming the file.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let source = WeightSource::open(path).map_err(|error| not_read(error, path))?;
        let sizes = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect();
        let shapes = source.infos().map(|(name, _, shape)| (name.to_owned(), sizes(shape))).collect();
        let source = Rc::new(RefCell::new(HashedSource::new(source)));
        Ok(Self { path: path.to_owned(), shapes, source })
    }

    /// Weights that are read as a model takes them.
    #[must_use]
    pub fn weights(&self) -> Weights {
        let source = Rc::clone(&self.source);
        Weights::in_file(self.shapes.clone(), move |name| match source.borrow_mut().read(name) {
            Ok(Some(host)) => Ok(to_torch(&host)),
            Ok(None) => Err("the header does not have it".into()),
            Err(error) => Err(launch::with_causes(&error)),
        })
    }

    /// All of them at once.
    ///
    /// # Errors
    /// As [`WeightFolder::open`].
    pub fn read_all(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut source = self.source.borrow_mut();
        let mut tensors = BTreeMap::new();
        for (name, _) in &self.shapes {
            if let Some(host) = source.read(name).map_err(|error| not_read(error, &self.path))? {
                tensors.insert(name.clone(), to_torch(&host));
            }
        }
        Ok(tensors)
    }

    /// Identifies the weights, see [`HashedSource::digest`]; what a model took is not read again.
    ///
    /// # Errors
    /// As [`WeightFolder::open`].
    pub fn digest(&self) -> Result<String, TrainError> {
        self.source.borrow_mut().digest().map_err(|error| not_read(error, &self.path))
    }
}

fn not_read(error: CheckpointError, folder: &Path) -> TrainError {
    match error {
        CheckpointError::Io { path, source, .. } => TrainError::Read { path, source },
        CheckpointError::Malformed { path, reason } => TrainError::Weights { path, detail: reason },
        other => TrainError::Weights { path: folder.to_owned(), detail: other.to_string() },
    }
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
