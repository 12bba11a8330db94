//! Tensors of several sources on their way into one file or folder.

use std::path::Path;

use checkpoint::{Announced, CheckpointError, HostTensor};

use super::tensors::{Planned, Tensors, cook};
use crate::error::TrainError;

/// Bytes between two lines of progress.
const PROGRESS_BYTES: u64 = 1 << 30;

/// What will be written, in order, and where it comes from.
#[derive(Default)]
pub(super) struct Composition {
    sources: Vec<Box<dyn Tensors>>,
    entries: Vec<(usize, Planned)>,
}

impl Composition {
    /// Adds `planned`, whose recipes name tensors of `source`, with `prefix` before the new names.
    pub fn add(&mut self, source: Box<dyn Tensors>, planned: Vec<Planned>, prefix: &str) {
        let place = self.sources.len();
        self.sources.push(source);
        let renamed =
            |planned: Planned| (place, Planned { name: format!("{prefix}{}", planned.name), ..planned });
        self.entries.extend(planned.into_iter().map(renamed));
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The place of a name.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|(_, planned)| planned.name == name)
    }

    /// Every name with its place.
    pub fn names(&self) -> Vec<(String, usize)> {
        self.entries.iter().enumerate().map(|(place, (_, planned))| (planned.name.clone(), place)).collect()
    }

    /// Every tensor as it will be written.
    pub fn announced(&self) -> Vec<Announced> {
        self.entries.iter().map(|(_, planned)| planned.announced()).collect()
    }

    /// Writes a folder of safetensors with lines of progress.
    pub fn write(&mut self, folder: &Path, shard_bytes: u64, say: &dyn Fn(&str)) -> Result<(), TrainError> {
        let announced = self.announced();
        let mut progress = Progress::new(&announced, say)?;
        checkpoint::write_weights(folder, &announced, shard_bytes, |place| progress.pass(self.read(place)?))
    }

    /// Writes a `.pth` with lines of progress; `names`: each name with its place.
    pub fn write_pth(
        &mut self,
        path: &Path,
        names: &[(String, usize)],
        say: &dyn Fn(&str),
    ) -> Result<(), TrainError> {
        let announced = self.announced();
        let mut progress = Progress::new(&announced, say)?;
        let read = |place| progress.pass(self.read(place)?);
        checkpoint::foreign::torch_save::write_pth(path, &announced, names, read)
    }

    fn read(&mut self, place: usize) -> Result<HostTensor, TrainError> {
        let (source, planned) = &self.entries[place];
        cook(self.sources[*source].as_mut(), planned)
    }
}

/// Tells a person at each gigabyte how far it is.
struct Progress<'a> {
    total: u64,
    done: u64,
    say: &'a dyn Fn(&str),
}

impl<'a> Progress<'a> {
    fn new(announced: &[Announced], say: &'a dyn Fn(&str)) -> Result<Self, CheckpointError> {
        let total = announced.iter().map(Announced::byte_len).sum::<Result<u64, _>>()?;
        Ok(Self { total, done: 0, say })
    }

    fn pass(&mut self, tensor: HostTensor) -> Result<HostTensor, TrainError> {
        let before = self.done / PROGRESS_BYTES;
        self.done += tensor.bytes.len() as u64;
        if self.done / PROGRESS_BYTES > before {
            (self.say)(&format!("{:.1} of {:.1} GB", self.done as f64 / 1e9, self.total as f64 / 1e9));
        }
        Ok(tensor)
    }
}
