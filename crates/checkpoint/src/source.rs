//! One way to look at weights, whatever program wrote them: names, types and sizes first, then tensor by tensor.
//!
//! A path is told apart by what it holds, never by its name: a folder by its index or its weight file, a file by its
//! first bytes (`GGUF`, a zip, torch's legacy magic, else safetensors).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::durable::parent_of;
use crate::foreign::gguf::GgufFile;
use crate::foreign::pth::PthFile;
use crate::{CheckpointError, Dtype, HostTensor, TensorFile};

/// Indices above this are refused unread; it names about half a million tensors.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Shards of one model.
const MAX_SHARDS: usize = 4096;
/// What a folder is looked through for, the first one found wins, as in transformers. Indices name the shards beside them.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// What an index is called behind the name that its weights would have as one file.
const INDEX_SUFFIX: &str = ".index.json";

/// What wrote a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// safetensors, whole or sharded.
    Safetensors,
    /// `torch.save`, either form.
    Torch,
    /// llama.cpp.
    Gguf,
}

/// Weights whose table of contents is read and checked; tensors are read one by one.
#[derive(Debug)]
pub struct WeightSource {
    path: PathBuf,
    format: WeightFormat,
    parts: Vec<Part>,
    tensors: BTreeMap<String, Located>,
}

#[derive(Debug)]
enum Part {
    Safetensors(TensorFile),
    Torch(PthFile),
    Gguf(GgufFile),
}

#[derive(Debug)]
struct Located {
    part: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// `*.index.json`; its metadata is not needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightSource {
    /// Opens a weight file, or the weights of a folder in Hugging Face's layout, without reading a tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when something cannot be read; [`CheckpointError::Malformed`] for a file of no known
    /// kind, a damaged one, and an index that does not say which shards are there and what they hold.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        if !path.is_dir() {
            return Self::of_files(path, &[path.to_path_buf()]);
        }
        let found = FOLDER_FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
        let Some(file) = found else {
            let reason = format!(
                "holds none of {}; `blip2 import` makes a folder of other files",
                FOLDER_FILES.join(", ")
            );
            return Err(CheckpointError::malformed(path, reason));
        };
        if file.extension().is_none_or(|extension| extension != "json") {
            return Self::of_files(path, &[file]);
        }
        let index = read_index(&file)?;
        let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
        check_shards(&file, &shards)?;
        let shards: Vec<PathBuf> = shards.into_iter().map(|shard| path.join(shard)).collect();
        let source = Self::of_files(path, &shards)?;
        source.check_index(&index, &file, &shards)?;
        Ok(source)
    }

    /// Several files as one: their names must differ.
    ///
    /// # Errors
    /// As [`WeightSource::open`].
    pub fn of_files(path: &Path, files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let mut source = Self {
            path: path.to_path_buf(),
            format: WeightFormat::Safetensors,
            parts: Vec::new(),
            tensors: BTreeMap::new(),
        };
        files.iter().try_for_each(|file| source.add(file))?;
        Ok(source)
    }

    /// The same with the tensors of `file`, whose names must be others.
    ///
    /// # Errors
    /// As [`WeightSource::open`].
    pub fn with(mut self, file: &Path) -> Result<Self, CheckpointError> {
        self.add(file)?;
        Ok(self)
    }

    fn add(&mut self, file: &Path) -> Result<(), CheckpointError> {
        let part = Part::open(file)?;
        self.format = part.format();
        for (name, dtype, shape) in part.infos() {
            let located = Located { part: self.parts.len(), dtype, shape };
            if self.tensors.insert(name.clone(), located).is_some() {
                return Err(CheckpointError::malformed(file, format!("{name} stands in another shard too")));
            }
        }
        self.parts.push(part);
        Ok(())
    }

    /// Every name stands where the index says, and nothing else does.
    fn check_index(&self, index: &Index, file: &Path, shards: &[PathBuf]) -> Result<(), CheckpointError> {
        let place = |name: &str| {
            let shard = &shards[self.tensors.get(name)?.part];
            shard.file_name()?.to_str()
        };
        let wrong = index.weight_map.iter().find(|(name, shard)| place(name) != Some(shard.as_str()));
        if let Some((name, shard)) = wrong {
            return Err(CheckpointError::malformed(file, format!("{name} is not in {shard}")));
        }
        match self.tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
            Some(name) => {
                Err(CheckpointError::malformed(file, format!("does not name {name} of its shards")))
            }
            None => Ok(()),
        }
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What wrote it.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The GGUF itself, with its settings, where it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match self.parts.as_slice() {
            [Part::Gguf(file)] => Some(file),
            _ => None,
        }
    }

    /// Names, types and sizes, in the order of the names. Quantised tensors count as F32.
    pub fn infos(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors.iter().map(|(name, it)| (name.as_str(), it.dtype, it.shape.as_slice()))
    }

    /// Reads one tensor; `None` when there is none of this name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(located) = self.tensors.get(name) else { return Ok(None) };
        match &mut self.parts[located.part] {
            Part::Safetensors(file) => file.read(name),
            Part::Torch(file) => file.read(name),
            Part::Gguf(file) => file.read(name),
        }
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut head = Vec::new();
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        file.take(9).read_to_end(&mut head).map_err(CheckpointError::io("read", path))?;
        Ok(match head.as_slice() {
            // First: as a header's length it would be above a gigabyte, and its count of tensors may look like a brace.
            [b'G', b'G', b'U', b'F', ..] => Self::Gguf(GgufFile::open(path)?),
            // A header's length, then its JSON: the length's own bytes may look like anything below.
            [_, _, _, _, _, _, 0, 0, b'{'] => Self::Safetensors(TensorFile::open(path)?),
            [b'P', b'K', ..] | [0x80, 0x02, ..] => Self::Torch(PthFile::open(path)?),
            _ => Self::Safetensors(TensorFile::open(path)?),
        })
    }

    fn format(&self) -> WeightFormat {
        match self {
            Self::Safetensors(_) => WeightFormat::Safetensors,
            Self::Torch(_) => WeightFormat::Torch,
            Self::Gguf(_) => WeightFormat::Gguf,
        }
    }

    fn infos(&self) -> Vec<(String, Dtype, Vec<usize>)> {
        let owned = |name: &str, info: Option<(Dtype, &[usize])>| {
            info.map(|(dtype, shape)| (name.to_owned(), dtype, shape.to_vec()))
        };
        match self {
            Self::Safetensors(file) => {
                let tensors = &file.header().tensors;
                tensors.iter().map(|(name, it)| (name.clone(), it.dtype, it.shape.clone())).collect()
            }
            Self::Torch(file) => file.names().filter_map(|name| owned(name, file.info(name))).collect(),
            Self::Gguf(file) => file.names().filter_map(|name| owned(name, file.info(name))).collect(),
        }
    }
}

/// Reads an index and checks that its shards are plain names, so that none leads out of the folder.
fn read_index(path: &Path) -> Result<Index, CheckpointError> {
    let len = fs::metadata(path).map_err(CheckpointError::io("read", path))?.len();
    if len > MAX_INDEX_BYTES {
        return Err(CheckpointError::malformed(path, format!("an index of {len} bytes")));
    }
    let bytes = fs::read(path).map_err(CheckpointError::io("read", path))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let is_plain = |shard: &&&String| Path::new(shard.as_str()).file_name() == Some(shard.as_str().as_ref());
    if let Some(shard) = shards.iter().find(|shard| !is_plain(shard)) {
        return Err(CheckpointError::malformed(path, format!("{shard:?} is no file name")));
    }
    if shards.len() > MAX_SHARDS {
        return Err(CheckpointError::malformed(path, format!("{} shards", shards.len())));
    }
    Ok(index)
}

/// The shards that lie beside an index are those that it names.
fn check_shards(index: &Path, named: &BTreeSet<&str>) -> Result<(), CheckpointError> {
    let folder = parent_of(index);
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(CheckpointError::io("read", folder))? {
        let entry = entry.map_err(CheckpointError::io("read", folder))?;
        there.extend(entry.file_name().into_string());
    }
    if let Some(shard) = named.iter().find(|shard| !there.contains(**shard)) {
        return Err(CheckpointError::malformed(index, format!("names {shard}, which is not beside it")));
    }
    let whole =
        index.file_name().and_then(|name| name.to_str()?.strip_suffix(INDEX_SUFFIX)).unwrap_or_default();
    match there.iter().find(|name| is_shard_of(whole, name) && !named.contains(name.as_str())) {
        Some(shard) => Err(CheckpointError::malformed(
            index,
            format!("names no tensor of {shard}, which lies beside it"),
        )),
        None => Ok(()),
    }
}

/// Whether `name` is `STEM-00001-of-00003.KIND` where `whole` is `STEM.KIND`.
fn is_shard_of(whole: &str, name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = || {
        let (stem, kind) = whole.rsplit_once('.')?;
        let numbers = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(kind)?.strip_suffix('.')?;
        numbers.split_once("-of-")
    };
    numbers().is_some_and(|(number, count)| is_number(number) && is_number(count))
}
