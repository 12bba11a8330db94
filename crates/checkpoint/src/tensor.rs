//! A tensor on the host: type, sizes and bytes, nothing else.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::CheckpointError;

/// Tensors by name, in name order (so that files come out the same every time).
pub type TensorMap = BTreeMap<String, HostTensor>;

/// Element type of a tensor; exactly those that libtorch and safetensors both know and we meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it: kind and width in bits")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Every type, in the order of the declaration.
    pub const ALL: [Self; 10] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name safetensors writes in its header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// The type of a safetensors name; `None` for types we do not take (unsigned 16 to 64 bits, 8-bit floats).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// A tensor in host memory: row-major, little endian. `bytes.len()` is the product of `shape` times the type's size.
#[derive(Clone, PartialEq, Eq)]
pub struct HostTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, row-major, little endian.
    pub bytes: Vec<u8>,
}

/// Type and sizes only: a test that fails should not print megabytes.
impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({} {:?}, {} bytes)", self.dtype.name(), self.shape, self.bytes.len())
    }
}

/// Bytes of a tensor of these sizes; `None` when the count does not fit a `usize`.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |product, size| product.checked_mul(*size))
}

impl HostTensor {
    /// A tensor from its parts.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when `bytes` is not as long as type and sizes say.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        if byte_len(dtype, &shape) != Some(bytes.len()) {
            let reason = format!("{} bytes given for {} {shape:?}", bytes.len(), dtype.name());
            return Err(CheckpointError::Tensor { name: String::new(), reason });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// A 32-bit float tensor of these sizes.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when the count of values is not the product of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Self, CheckpointError> {
        Self::new(Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A 64-bit integer tensor of these sizes.
    ///
    /// # Errors
    /// As [`HostTensor::from_f32`].
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Result<Self, CheckpointError> {
        Self::new(Dtype::I64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Zeros of this type and these sizes.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when the byte count does not fit the machine.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Result<Self, CheckpointError> {
        let len = byte_len(dtype, shape).filter(|len| *len <= isize::MAX as usize);
        let Some(len) = len else {
            let reason = format!("{shape:?} does not fit in memory");
            return Err(CheckpointError::Tensor { name: String::new(), reason });
        };
        Ok(Self { dtype, shape: shape.to_vec(), bytes: vec![0; len] })
    }

    /// Count of elements (1 for a scalar).
    pub fn numel(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements as 32-bit floats: exact for f32, f16, bf16, 8- and 16-bit integers and booleans (0 or 1),
    /// rounded to nearest for f64, i64 and i32.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "documented rounding")]
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let bytes = self.bytes.as_slice();
        match self.dtype {
            Dtype::F64 => elements(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => elements(bytes, f32::from_le_bytes),
            Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::I64 => elements(bytes, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => elements(bytes, |b| i32::from_le_bytes(b) as f32),
            Dtype::I16 => elements(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Dtype::I8 => elements(bytes, |b| f32::from(i8::from_le_bytes(b))),
            Dtype::U8 => elements(bytes, |b: [u8; 1]| f32::from(b[0])),
            Dtype::Bool => elements(bytes, |b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
        }
    }

    /// The same values as another floating-point type, through f32 (round to nearest even).
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when `to` is not a floating-point type.
    pub fn to_float(&self, to: Dtype) -> Result<Self, CheckpointError> {
        if to == self.dtype {
            return Ok(self.clone());
        }
        let values = self.to_f32_vec();
        let bytes = match to {
            Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => {
                let reason = format!("{} is not a floating-point type", to.name());
                return Err(CheckpointError::Tensor { name: String::new(), reason });
            }
        };
        Self::new(to, self.shape.clone(), bytes)
    }
}

/// Decodes little-endian elements of `N` bytes.
fn elements<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| decode(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_convert_exactly() {
        let values = [0.0, -1.5, 65504.0, 0.099_975_586];
        let wide = HostTensor::from_f32(&[2, 2], &values).unwrap();
        let narrow = wide.to_float(Dtype::F16).unwrap();
        assert_eq!(narrow.bytes.len(), 8);
        assert_eq!(narrow.to_f32_vec(), values);
        let brain = HostTensor::new(Dtype::BF16, vec![2], vec![0x80, 0x3f, 0x00, 0xc0]).unwrap();
        assert_eq!(brain.to_f32_vec(), [1.0, -2.0]);
    }

    #[test]
    fn length_must_match_shape() {
        assert!(HostTensor::from_f32(&[2, 3], &[0.0; 5]).is_err());
        assert!(HostTensor::new(Dtype::F32, vec![usize::MAX, usize::MAX], Vec::new()).is_err());
        assert!(HostTensor::zeros(Dtype::U8, &[usize::MAX]).is_err());
        assert_eq!(HostTensor::from_f32(&[], &[7.0]).unwrap().numel(), 1);
    }
}
