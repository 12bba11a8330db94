//! GGUF files, versions 2 and 3: the weights, settings and vocabulary of llama.cpp.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Plain types are given as they are, Q4_0,
//! Q4_1 and Q8_0 as 32-bit floats; other quantisations are refused by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::overlap::first_overlap;
use super::quant::{BLOCK, Quant};
use super::scan::Scan;
use crate::{CheckpointError, Dtype, HostTensor};

/// Tensors of one file.
const MAX_TENSORS: u64 = 1 << 16;
/// Settings of one file.
const MAX_SETTINGS: u64 = 1 << 16;
/// Elements of one list (vocabularies have some hundred thousand).
const MAX_LIST: u64 = 1 << 24;
/// Bytes of all settings, as they lie in the file.
const MAX_SETTINGS_BYTES: u64 = 256 << 20;
/// Dimensions of one tensor (ggml's own limit).
const MAX_DIMENSIONS: u32 = 4;

/// One setting. Integers of every width are one variant, so are floats.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Setting {
    /// Any integer type; 64-bit unsigned values above `i64::MAX` are refused.
    Int(i64),
    /// 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f64>),
    /// A list of booleans.
    Bools(Vec<bool>),
    /// A list of strings.
    Texts(Vec<String>),
}

/// A GGUF file whose table of contents is read and checked; tensors are read one by one.
#[derive(Debug)]
pub struct GgufFile {
    file: File,
    path: PathBuf,
    settings: BTreeMap<String, Setting>,
    tensors: BTreeMap<String, Place>,
}

/// Element types of the tensors we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    Plain(Dtype),
    Quantised(Quant),
}

/// Where one tensor lies.
#[derive(Debug)]
struct Place {
    storage: Storage,
    /// Outermost first (the file has them the other way round).
    shape: Vec<usize>,
    /// Byte offset in the file.
    start: u64,
    len: usize,
}

impl GgufFile {
    /// Opens a file and reads its settings and its table of tensors.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when it cannot be read; [`CheckpointError::Malformed`] when it is no GGUF file, is cut
    /// off, or holds a type we do not read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let len = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let mut scan = Scan::new(BufReader::new(&file), path, len);
        if scan.array::<4>()? != *b"GGUF" {
            return Err(scan.malformed("no GGUF file"));
        }
        let version = scan.u32()?;
        if !(2..=3).contains(&version) {
            return Err(scan.malformed(format!("GGUF version {version}, we read 2 and 3")));
        }
        let (tensor_count, setting_count) = (scan.u64()?, scan.u64()?);
        if tensor_count > MAX_TENSORS || setting_count > MAX_SETTINGS {
            return Err(scan.malformed(format!("{tensor_count} tensors and {setting_count} settings")));
        }
        let settings = read_settings(&mut scan, setting_count)?;
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, place) = read_place(&mut scan)?;
            if tensors.contains_key(&name) {
                return Err(scan.malformed(format!("two tensors are named {name}")));
            }
            tensors.insert(name, place);
        }
        place_data(&scan, alignment(&scan, &settings)?, len, &mut tensors)?;
        Ok(Self { file, path: path.to_path_buf(), settings, tensors })
    }

    /// Every setting by its key.
    pub fn settings(&self) -> &BTreeMap<String, Setting> {
        &self.settings
    }

    /// An integer setting.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`] when it is absent or no integer; so for the five below.
    pub fn int(&self, key: &str) -> Result<i64, CheckpointError> {
        if let Some(Setting::Int(value)) = self.settings.get(key) { Ok(*value) } else { Err(self.lacks(key)) }
    }

    /// A float setting.
    ///
    /// # Errors
    /// As [`GgufFile::int`].
    pub fn float(&self, key: &str) -> Result<f64, CheckpointError> {
        if let Some(Setting::Float(value)) = self.settings.get(key) {
            Ok(*value)
        } else {
            Err(self.lacks(key))
        }
    }

    /// A text setting.
    ///
    /// # Errors
    /// As [`GgufFile::int`].
    pub fn text(&self, key: &str) -> Result<&str, CheckpointError> {
        if let Some(Setting::Text(value)) = self.settings.get(key) { Ok(value) } else { Err(self.lacks(key)) }
    }

    /// A list of strings.
    ///
    /// # Errors
    /// As [`GgufFile::int`].
    pub fn texts(&self, key: &str) -> Result<&[String], CheckpointError> {
        if let Some(Setting::Texts(values)) = self.settings.get(key) {
            Ok(values)
        } else {
            Err(self.lacks(key))
        }
    }

    /// A list of integers.
    ///
    /// # Errors
    /// As [`GgufFile::int`].
    pub fn ints(&self, key: &str) -> Result<&[i64], CheckpointError> {
        if let Some(Setting::Ints(values)) = self.settings.get(key) {
            Ok(values)
        } else {
            Err(self.lacks(key))
        }
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Sizes of a tensor, outermost first; `None` when the file has none of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    /// Type (F32 for quantised ones) and sizes of a tensor; `None` when the file has none of this name.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let place = self.tensors.get(name)?;
        let dtype = match place.storage {
            Storage::Plain(dtype) => dtype,
            Storage::Quantised(_) => Dtype::F32,
        };
        Some((dtype, place.shape.as_slice()))
    }

    /// Reads one tensor, quantised ones as F32; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(place) = self.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; place.len];
        let read =
            self.file.seek(SeekFrom::Start(place.start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(CheckpointError::io("read", &self.path))?;
        let (dtype, bytes) = match place.storage {
            Storage::Plain(dtype) => (dtype, bytes),
            Storage::Quantised(quant) => (Dtype::F32, quant.dequantise(&bytes)),
        };
        Ok(Some(HostTensor { dtype, shape: place.shape.clone(), bytes }))
    }

    /// This file is not what its user needs.
    pub(super) fn refused(&self, reason: &str) -> CheckpointError {
        CheckpointError::malformed(&self.path, reason)
    }

    fn lacks(&self, key: &str) -> CheckpointError {
        CheckpointError::malformed(&self.path, format!("setting {key} is missing or of another type"))
    }
}

type FileScan<'a> = Scan<BufReader<&'a File>>;

fn read_settings(scan: &mut FileScan<'_>, count: u64) -> Result<BTreeMap<String, Setting>, CheckpointError> {
    let mut settings = BTreeMap::new();
    for _ in 0..count {
        let key = read_text(scan)?;
        let kind = scan.u32()?;
        let setting = match kind {
            9 => read_list(scan)?,
            _ => read_scalar(scan, kind)?,
        };
        if settings.insert(key.clone(), setting).is_some() {
            return Err(scan.malformed(format!("setting {key} stands twice")));
        }
        if scan.pos() > MAX_SETTINGS_BYTES {
            return Err(scan.malformed(format!("the settings exceed {MAX_SETTINGS_BYTES} bytes")));
        }
    }
    Ok(settings)
}

fn read_text(scan: &mut FileScan<'_>) -> Result<String, CheckpointError> {
    let count = scan.u64()?;
    if count > MAX_SETTINGS_BYTES {
        return Err(scan.malformed(format!("a string of {count} bytes")));
    }
    scan.text(count)
}

fn read_scalar(scan: &mut FileScan<'_>, kind: u32) -> Result<Setting, CheckpointError> {
    Ok(match kind {
        0..=5 | 10 | 11 => Setting::Int(read_int(scan, kind)?),
        6 | 12 => Setting::Float(read_float(scan, kind)?),
        7 => Setting::Bool(read_bool(scan)?),
        8 => Setting::Text(read_text(scan)?),
        other => return Err(scan.malformed(format!("a setting of unknown type {other}"))),
    })
}

/// A list: element type, count, elements. Lists of lists are allowed by the format, used by nobody, refused here.
fn read_list(scan: &mut FileScan<'_>) -> Result<Setting, CheckpointError> {
    let (kind, count) = (scan.u32()?, scan.u64()?);
    if count > MAX_LIST.min(scan.left()) {
        return Err(scan.malformed(format!("a list of {count} elements")));
    }
    // `collect` on a range of results allocates as it goes: a lying count meets the end of the file first
    Ok(match kind {
        0..=5 | 10 | 11 => Setting::Ints((0..count).map(|_| read_int(scan, kind)).collect::<Result<_, _>>()?),
        6 | 12 => Setting::Floats((0..count).map(|_| read_float(scan, kind)).collect::<Result<_, _>>()?),
        7 => Setting::Bools((0..count).map(|_| read_bool(scan)).collect::<Result<_, _>>()?),
        8 => Setting::Texts((0..count).map(|_| read_text(scan)).collect::<Result<_, _>>()?),
        other => return Err(scan.malformed(format!("a list of type {other}"))),
    })
}

fn read_int(scan: &mut FileScan<'_>, kind: u32) -> Result<i64, CheckpointError> {
    Ok(match kind {
        0 => scan.u8()?.into(),
        1 => scan.u8()?.cast_signed().into(),
        2 => u16::from_le_bytes(scan.array()?).into(),
        3 => i16::from_le_bytes(scan.array()?).into(),
        4 => scan.u32()?.into(),
        5 => scan.u32()?.cast_signed().into(),
        10 => i64::try_from(scan.u64()?).map_err(|_| scan.malformed("an integer above 2^63"))?,
        _ => scan.u64()?.cast_signed(),
    })
}

fn read_float(scan: &mut FileScan<'_>, kind: u32) -> Result<f64, CheckpointError> {
    Ok(match kind {
        6 => f32::from_le_bytes(scan.array()?).into(),
        _ => f64::from_le_bytes(scan.array()?),
    })
}

fn read_bool(scan: &mut FileScan<'_>) -> Result<bool, CheckpointError> {
    match scan.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(scan.malformed(format!("a boolean of value {other}"))),
    }
}

/// One line of the table of tensors; `start` is still relative to the data.
fn read_place(scan: &mut FileScan<'_>) -> Result<(String, Place), CheckpointError> {
    let name = read_text(scan)?;
    let dimensions = scan.u32()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(scan.malformed(format!("tensor {name} has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = usize::try_from(scan.u64()?);
        shape.push(size.map_err(|_| scan.malformed(format!("tensor {name} has a size out of reach")))?);
    }
    let row = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let kind = scan.u32()?;
    let storage = storage(kind).map_err(|what| scan.malformed(format!("tensor {name} is {what}")))?;
    let start = scan.u64()?;
    let numel = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    let len = numel.and_then(|numel| match storage {
        Storage::Plain(dtype) => numel.checked_mul(dtype.size()),
        Storage::Quantised(quant) if row % BLOCK == 0 => (numel / BLOCK).checked_mul(quant.block_bytes()),
        Storage::Quantised(_) => None,
    });
    let len = len.ok_or_else(|| scan.malformed(format!("tensor {name} cannot have sizes {shape:?}")))?;
    Ok((name, Place { storage, shape, start, len }))
}

/// The element type of a `ggml_type` number.
fn storage(kind: u32) -> Result<Storage, String> {
    Ok(match kind {
        0 => Storage::Plain(Dtype::F32),
        1 => Storage::Plain(Dtype::F16),
        2 => Storage::Quantised(Quant::Q4_0),
        3 => Storage::Quantised(Quant::Q4_1),
        8 => Storage::Quantised(Quant::Q8_0),
        24 => Storage::Plain(Dtype::I8),
        25 => Storage::Plain(Dtype::I16),
        26 => Storage::Plain(Dtype::I32),
        27 => Storage::Plain(Dtype::I64),
        28 => Storage::Plain(Dtype::F64),
        30 => Storage::Plain(Dtype::BF16),
        6 | 7 | 9 | 10..=23 => {
            return Err(format!("of quantised ggml type {kind}; we read Q4_0, Q4_1 and Q8_0"));
        }
        other => return Err(format!("of unknown ggml type {other}")),
    })
}

fn alignment(scan: &FileScan<'_>, settings: &BTreeMap<String, Setting>) -> Result<u64, CheckpointError> {
    match settings.get("general.alignment") {
        None => Ok(32),
        Some(Setting::Int(value @ 8..=65_536)) if value.count_ones() == 1 => Ok(value.unsigned_abs()),
        Some(other) => Err(scan.malformed(format!("an alignment of {other:?}"))),
    }
}

/// Turns relative starts into offsets in the file and checks that each tensor lies inside it.
fn place_data(
    scan: &FileScan<'_>,
    alignment: u64,
    file_len: u64,
    tensors: &mut BTreeMap<String, Place>,
) -> Result<(), CheckpointError> {
    let data = scan.pos().next_multiple_of(alignment);
    for (name, place) in tensors.iter_mut() {
        let start = data.checked_add(place.start);
        let end = start.and_then(|start| start.checked_add(place.len as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len => place.start = start,
            _ => return Err(scan.malformed(format!("tensor {name} reaches past the end of the file"))),
        }
    }
    let ranges = tensors.iter().map(|(name, place)| (place.start, place.len as u64, name.as_str()));
    match first_overlap(ranges) {
        Some((one, other)) => Err(scan.malformed(format!("tensors {one} and {other} claim the same bytes"))),
        None => Ok(()),
    }
}
