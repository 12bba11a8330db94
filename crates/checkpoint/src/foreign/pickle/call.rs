//! The names a pickle may refer to, and what calling them would have given.

use std::io::{Read, Seek};

use super::{Callable, MAX_DIMENSIONS, MAX_NAME, Machine, Node, Storage, Value, View};
use crate::{CheckpointError, Dtype};

impl<R: Read + Seek> Machine<'_, R> {
    /// GLOBAL: two lines, module and name.
    pub(super) fn callable(&mut self) -> Result<Callable, CheckpointError> {
        let module = self.scan.line(MAX_NAME)?;
        let name = self.scan.line(MAX_NAME)?;
        Ok(match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Callable::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Callable::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Callable::RebuildParameter,
            ("torch", "DoubleStorage") => Callable::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Callable::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Callable::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Callable::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Callable::Storage(Dtype::I64),
            ("torch", "IntStorage") => Callable::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Callable::Storage(Dtype::I16),
            ("torch", "CharStorage") => Callable::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Callable::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Callable::Storage(Dtype::Bool),
            _ => return Err(self.refused(format!("{module}.{name}"))),
        })
    }

    /// REDUCE: what calling one of the allowed names would have given.
    pub(super) fn reduce(&mut self) -> Result<Value, CheckpointError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let Value::Callable(callable) = callable else {
            return Err(self.refused("a call of something that is no name"));
        };
        let arguments = self.tuple(&arguments)?.to_vec();
        match (callable, arguments.as_slice()) {
            (Callable::OrderedDict, []) => Ok(self.node(Node::Dict(Vec::new()))),
            (Callable::RebuildTensor, [storage, offset, shape, stride, _grad, _hooks, ..])
                if arguments.len() <= 7 =>
            {
                self.rebuild(storage, offset, shape, stride)
            }
            (Callable::RebuildParameter, [tensor @ Value::Tensor(_), _grad, _hooks]) => Ok(tensor.clone()),
            (other, _) => Err(self.refused(format!("{other:?} with {} unfit arguments", arguments.len()))),
        }
    }

    fn rebuild(
        &mut self,
        storage: &Value,
        offset: &Value,
        shape: &Value,
        stride: &Value,
    ) -> Result<Value, CheckpointError> {
        let Value::Storage(storage) = *storage else {
            return Err(self.refused("a tensor without a storage"));
        };
        let offset = self.count(offset)?;
        let (shape, stride) = (self.counts(shape)?, self.counts(stride)?);
        if shape.len() != stride.len() {
            return Err(self.refused("a tensor with unequal counts of sizes and strides"));
        }
        self.built.tensors.push(View { storage, offset, shape, stride });
        Ok(Value::Tensor(self.built.tensors.len() - 1))
    }

    /// BINPERSID: `("storage", type, key, device, count)`, and in legacy files a sixth item that is None.
    pub(super) fn persistent(&mut self) -> Result<Value, CheckpointError> {
        let id = self.pop()?;
        let id = self.tuple(&id)?.to_vec();
        let (Value::Text(kind), Value::Callable(Callable::Storage(dtype)), Value::Text(key), numel) =
            (match id.as_slice() {
                [kind, class, key, _device, numel] | [kind, class, key, _device, numel, Value::None] => {
                    (kind, class, key, numel)
                }
                _ => return Err(self.refused("a persistent id that names no plain storage")),
            })
        else {
            return Err(self.refused("a persistent id that names no plain storage"));
        };
        if &**kind != "storage" {
            return Err(self.refused(format!("a persistent id of kind {kind:?}")));
        }
        let numel = self.count(numel)?;
        self.built.storages.push(Storage { key: key.clone(), dtype: *dtype, numel });
        Ok(Value::Storage(self.built.storages.len() - 1))
    }

    /// BUILD: `OrderedDict` carries its `_metadata` this way; it holds no tensor and is dropped.
    pub(super) fn build(&mut self) -> Result<(), CheckpointError> {
        let state = self.pop()?;
        let (Value::Node(state), Some(Value::Node(target))) = (state, self.stack.last()) else {
            return Err(self.refused("an object's state on something that is no dictionary"));
        };
        match (self.built.nodes.get(state), self.built.nodes.get(*target)) {
            (Some(Node::Dict(_)), Some(Node::Dict(_))) => Ok(()),
            _ => Err(self.refused("an object's state on something that is no dictionary")),
        }
    }

    fn tuple(&self, value: &Value) -> Result<&[Value], CheckpointError> {
        if let Value::Node(index) = value
            && let Some(Node::Tuple(items)) = self.built.nodes.get(*index)
        {
            return Ok(items);
        }
        Err(self.refused("a tuple is missing"))
    }

    fn count(&self, value: &Value) -> Result<u64, CheckpointError> {
        match value {
            Value::Int(count) => u64::try_from(*count).map_err(|_| self.refused("a negative count")),
            _ => Err(self.refused("a count that is no integer")),
        }
    }

    fn counts(&self, value: &Value) -> Result<Vec<u64>, CheckpointError> {
        let items = self.tuple(value)?;
        if items.len() > MAX_DIMENSIONS {
            return Err(self.refused(format!("a tensor of {} dimensions", items.len())));
        }
        items.iter().map(|item| self.count(item)).collect()
    }
}
