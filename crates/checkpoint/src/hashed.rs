//! What weights are, whatever files they lie in: a digest of their tensors, taken while these are read for a model, so that
//! gigabytes are read once.

use std::collections::BTreeMap;

use blake3::{Hash, Hasher};

use crate::{CheckpointError, HostTensor, WeightSource};

/// Begins each digest, so that it is told apart from one of another kind, such as a file's.
const SCHEME: &str = "tensors:";

/// A [`WeightSource`] that hashes what it reads.
#[derive(Debug)]
pub struct HashedSource {
    source: WeightSource,
    hashes: BTreeMap<String, Hash>,
}

impl HashedSource {
    /// Nothing of `source` is read yet.
    pub fn new(source: WeightSource) -> Self {
        Self { source, hashes: BTreeMap::new() }
    }

    /// As [`WeightSource::read`].
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let tensor = self.source.read(name)?;
        if let Some(tensor) = &tensor {
            self.hashes.entry(name.to_owned()).or_insert_with(|| blake3::hash(&tensor.bytes));
        }
        Ok(tensor)
    }

    /// `tensors:` and, in hexadecimal, BLAKE3 over name, type, sizes and BLAKE3 of every tensor, by name. The same for one
    /// file and for shards. Tensors that were not asked for are read now.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn digest(&mut self) -> Result<String, CheckpointError> {
        let infos: Vec<_> = self
            .source
            .infos()
            .map(|(name, dtype, shape)| (name.to_owned(), format!("{name}\0{} {shape:?}\0", dtype.name())))
            .collect();
        let mut whole = Hasher::new();
        for (name, description) in infos {
            if !self.hashes.contains_key(&name) {
                self.read(&name)?;
            }
            whole.update(description.as_bytes());
            if let Some(hash) = self.hashes.get(&name) {
                whole.update(hash.as_bytes());
            }
        }
        Ok(format!("{SCHEME}{}", whole.finalize().to_hex()))
    }
}
