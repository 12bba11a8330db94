//! Safetensors files: a JSON header that says where each tensor lies, then the bytes.
//!
//! Format: <https://github.com/huggingface/safetensors> (README, "Format"). A header comes from outside, so every
//! number in it is checked against the file's size before anything is allocated by it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::durable::replace_durably;
use crate::tensor::byte_len;
use crate::{CheckpointError, Dtype, HostTensor, TensorMap};

/// Headers above this are refused (the reference implementation's limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The key of the header that is no tensor.
const METADATA_KEY: &str = "__metadata__";

/// Free text pairs of a safetensors header.
pub type Metadata = BTreeMap<String, String>;

/// Where one tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Byte offset from the start of the file.
    pub offset: u64,
    /// Count of bytes.
    pub len: usize,
}

/// What a safetensors file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Every tensor by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The free text pairs.
    pub metadata: Metadata,
}

/// A safetensors file whose header is read and checked, and whose tensors are read one by one.
#[derive(Debug)]
pub struct TensorFile {
    file: File,
    path: PathBuf,
    header: Header,
}

impl TensorFile {
    /// Opens `path` and checks its header: types known, sizes consistent, tensors gapless and inside the file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when it cannot be read, [`CheckpointError::Malformed`] when the header lies.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let file_len = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let header = parse_header(&mut file, file_len, path)?;
        Ok(Self { file, path: path.to_path_buf(), header })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads one tensor; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(info) = self.header.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; info.len];
        let read =
            self.file.seek(SeekFrom::Start(info.offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(CheckpointError::io("read", &self.path))?;
        Ok(Some(HostTensor { dtype: info.dtype, shape: info.shape.clone(), bytes }))
    }
}

/// Reads names, types and sizes without the data.
///
/// # Errors
/// As [`TensorFile::open`].
pub fn read_header(path: &Path) -> Result<Header, CheckpointError> {
    Ok(TensorFile::open(path)?.header)
}

/// Reads every tensor of a file.
///
/// # Errors
/// As [`TensorFile::open`] and [`TensorFile::read`].
pub fn read_safetensors(path: &Path) -> Result<TensorMap, CheckpointError> {
    let mut file = TensorFile::open(path)?;
    let names: Vec<String> = file.header.tensors.keys().cloned().collect();
    let mut tensors = TensorMap::new();
    for name in names {
        if let Some(tensor) = file.read(&name)? {
            tensors.insert(name, tensor);
        }
    }
    Ok(tensors)
}

/// Writes `tensors` to `path`, durably: the old file or the whole new one is there, whatever happens meanwhile.
///
/// # Errors
/// [`CheckpointError::Io`] when the disk fails, [`CheckpointError::Tensor`] for a tensor whose bytes do not fit its
/// sizes or that is named like the metadata key.
pub fn write_safetensors(
    path: &Path,
    tensors: &TensorMap,
    metadata: &Metadata,
) -> Result<(), CheckpointError> {
    let header = encode_header(tensors, metadata)?;
    replace_durably(path, |file| write_body(file, &header, tensors))
}

/// One entry of the header as it stands in the JSON.
#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Sorts into file order: widest type first, so that each tensor starts aligned; stable within a type.
pub(crate) fn file_order_of<T>(tensors: &mut [T], dtype: impl Fn(&T) -> Dtype) {
    tensors.sort_by_key(|tensor| std::cmp::Reverse(dtype(tensor).size()));
}

/// Tensors in file order, by name within a type.
fn file_order(tensors: &TensorMap) -> Vec<(&String, &HostTensor)> {
    let mut order: Vec<_> = tensors.iter().collect();
    file_order_of(&mut order, |(_, tensor)| tensor.dtype);
    order
}

/// The length prefix and the header, padded with spaces to eight bytes.
pub(crate) fn encode_header(tensors: &TensorMap, metadata: &Metadata) -> Result<Vec<u8>, CheckpointError> {
    let order = file_order(tensors);
    for (name, tensor) in &order {
        if byte_len(tensor.dtype, &tensor.shape) != Some(tensor.bytes.len()) {
            return Err(refuse(name, format!("{tensor:?} holds the wrong count of bytes")));
        }
    }
    encode_entries(order.iter().map(|(name, it)| (name.as_str(), it.dtype, it.shape.as_slice())), metadata)
}

/// As [`encode_header`], for tensors in file order that are not yet in memory.
pub(crate) fn encode_entries<'a>(
    order: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>,
    metadata: &Metadata,
) -> Result<Vec<u8>, CheckpointError> {
    let mut entries = serde_json::Map::new();
    let to_json = |value: Result<serde_json::Value, serde_json::Error>| {
        value.map_err(|e| refuse("", format!("header cannot be written: {e}")))
    };
    if !metadata.is_empty() {
        entries.insert(METADATA_KEY.to_owned(), to_json(serde_json::to_value(metadata))?);
    }
    let mut offset = 0;
    for (name, dtype, shape) in order {
        if name == METADATA_KEY {
            return Err(refuse(name, "the name is reserved by the format".to_owned()));
        }
        let len = byte_len(dtype, shape).ok_or_else(|| refuse(name, format!("{shape:?} is out of reach")))?;
        let end = offset + len as u64;
        let entry =
            Entry { dtype: dtype.name().to_owned(), shape: shape.to_vec(), data_offsets: (offset, end) };
        if entries.insert(name.to_owned(), to_json(serde_json::to_value(entry))?).is_some() {
            return Err(refuse(name, "is to be written twice".to_owned()));
        }
        offset = end;
    }
    let mut json = serde_json::to_vec(&entries).map_err(|e| refuse("", e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

fn refuse(name: &str, reason: String) -> CheckpointError {
    CheckpointError::Tensor { name: name.to_owned(), reason }
}

/// Writes the encoded header and the data behind it.
pub(crate) fn write_body(file: &mut dyn Write, header: &[u8], tensors: &TensorMap) -> io::Result<()> {
    file.write_all(header)?;
    file_order(tensors).into_iter().try_for_each(|(_, tensor)| file.write_all(&tensor.bytes))
}

/// Reads and checks the header of a file of `file_len` bytes.
fn parse_header(file: &mut impl Read, file_len: u64, path: &Path) -> Result<Header, CheckpointError> {
    let mut prefix = [0; 8];
    if file_len < 8 {
        return Err(CheckpointError::malformed(path, format!("{file_len} bytes are too few for a header")));
    }
    file.read_exact(&mut prefix).map_err(CheckpointError::io("read", path))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
        let reason = format!("header of {header_len} bytes in a file of {file_len}");
        return Err(CheckpointError::malformed(path, reason));
    }
    let mut json = Vec::new();
    file.take(header_len).read_to_end(&mut json).map_err(CheckpointError::io("read", path))?;
    let raw: RawHeader = serde_json::from_slice(&json)
        .map_err(|e| CheckpointError::malformed(path, format!("header is not what it should be: {e}")))?;
    let data_start = 8 + header_len;
    let tensors =
        place_tensors(raw.entries, data_start, file_len).map_err(|r| CheckpointError::malformed(path, r))?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks that the entries fill the data part without gap or overlap, and places them in the file.
fn place_tensors(
    entries: Vec<(String, Entry)>,
    data_start: u64,
    file_len: u64,
) -> Result<BTreeMap<String, TensorInfo>, String> {
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = BTreeMap::new();
    let mut expected = 0;
    for (name, Entry { dtype: dtype_name, shape, data_offsets: (start, end) }) in order {
        let dtype =
            Dtype::from_name(dtype_name).ok_or_else(|| format!("tensor {name} has type {dtype_name}"))?;
        let len = byte_len(dtype, shape);
        if *start != expected || start.checked_add(len.unwrap_or(usize::MAX) as u64) != Some(*end) {
            return Err(format!("tensor {name} ({dtype_name} {shape:?}) claims bytes {start}..{end}"));
        }
        let info =
            TensorInfo { dtype, shape: shape.clone(), offset: data_start + start, len: len.unwrap_or(0) };
        // Checked here and not at the end: an offset past the file must never reach an allocation.
        if *end > file_len - data_start {
            return Err(format!(
                "tensor {name} ends {} bytes behind the file",
                end - (file_len - data_start)
            ));
        }
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} is named twice"));
        }
        expected = *end;
    }
    if expected != file_len - data_start {
        return Err(format!("{} bytes belong to no tensor", file_len - data_start - expected));
    }
    Ok(tensors)
}

/// The header's JSON with its order and its duplicates kept, so that a name given twice can be refused.
struct RawHeader {
    entries: Vec<(String, Entry)>,
    metadata: Metadata,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader { entries: Vec::new(), metadata: Metadata::new() };
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                raw.metadata = map.next_value()?;
            } else {
                raw.entries.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}
