//! One checkpoint: a folder of files under a manifest, written whole and verified before use.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::digest::{FileDigest, HashingWriter, verify_file};
use crate::disk::Disk;
use crate::manifest::{FORMAT, MANIFEST, Manifest};
use crate::tensor_file::{Metadata, encode_header, read_safetensors, write_body};
use crate::{CheckpointError, TensorMap};

/// Trainable parameters, under the names of the model.
const MODEL: &str = "model.safetensors";
/// Optimizer moments of the same parameters.
const OPTIMIZER: &str = "optimizer.safetensors";
/// Everything else a run needs to go on: step, cursor, schedule.
const STATE: &str = "state.json";
/// The resolved configuration, as text.
const CONFIG: &str = "config.toml";
/// The four of them; a folder with a file less is not a checkpoint.
const FILES: [&str; 4] = [MODEL, OPTIMIZER, STATE, CONFIG];

/// All that goes into a checkpoint, on the host and independent of the run: training can go on while it is written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Trainable parameters by name.
    pub model: TensorMap,
    /// Optimizer state by name.
    pub optimizer: TensorMap,
    /// The caller's training state; this crate does not look inside.
    pub state: serde_json::Value,
    /// The resolved configuration of the run.
    pub config: String,
    /// The phase of the run ("stage1").
    pub phase: String,
    /// The checkpoint the phase started from.
    pub parent: Option<String>,
    /// Frozen weights by name and digest.
    pub frozen: BTreeMap<String, String>,
}

/// Writes every file of a checkpoint into `folder`, which must not exist, the manifest last; all of it on the disk.
pub(crate) fn write_folder(
    disk: &dyn Disk,
    folder: &Path,
    snapshot: &Snapshot,
    step: u64,
) -> Result<(), CheckpointError> {
    disk.create_dir(folder).map_err(CheckpointError::io("create", folder))?;
    let json = |result: serde_json::Result<Vec<u8>>| {
        result.map_err(|e| CheckpointError::malformed(folder, format!("cannot be put as JSON: {e}")))
    };
    let mut files = BTreeMap::new();
    for (name, tensors) in [(MODEL, &snapshot.model), (OPTIMIZER, &snapshot.optimizer)] {
        let header = encode_header(tensors, &Metadata::new())?;
        let digest = write_file(disk, &folder.join(name), |file| write_body(file, &header, tensors))?;
        files.insert(name.to_owned(), digest);
    }
    let state = json(serde_json::to_vec_pretty(&snapshot.state))?;
    for (name, bytes) in [(STATE, state.as_slice()), (CONFIG, snapshot.config.as_bytes())] {
        files.insert(name.to_owned(), write_file(disk, &folder.join(name), |file| file.write_all(bytes))?);
    }
    let manifest = Manifest {
        format: FORMAT,
        step,
        phase: snapshot.phase.clone(),
        parent: snapshot.parent.clone(),
        frozen: snapshot.frozen.clone(),
        files,
    };
    let manifest = json(manifest.encode())?;
    write_file(disk, &folder.join(MANIFEST), |file| file.write_all(&manifest))?;
    disk.sync_dir(folder).map_err(CheckpointError::io("sync", folder))
}

/// Writes one file and returns its digests once it is on the disk.
fn write_file(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<FileDigest, CheckpointError> {
    let write = || {
        let mut file = BufWriter::with_capacity(1 << 20, HashingWriter::new(disk.create(path)?));
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
    };
    write().map_err(CheckpointError::io("write", path))
}

/// Compares every byte of a checkpoint folder with its manifest.
///
/// # Errors
/// [`CheckpointError::Damaged`] naming the first file and chunk that differ, otherwise as [`Manifest::read`].
pub fn verify(folder: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = Manifest::read(folder)?;
    for name in FILES {
        let path = folder.join(name);
        let Some(recorded) = manifest.files.get(name) else {
            return Err(CheckpointError::damaged(&path, "the manifest does not name the file"));
        };
        verify_file(&path, recorded)?;
    }
    Ok(manifest)
}

/// Verifies a checkpoint folder, then reads it. Nothing of an altered folder is handed out.
///
/// # Errors
/// As [`verify`]; [`CheckpointError::Malformed`] when a file is intact and yet not what its name says.
pub fn load(folder: &Path) -> Result<(Manifest, Snapshot), CheckpointError> {
    let manifest = verify(folder)?;
    let read = |name: &str| {
        let path = folder.join(name);
        let bytes = fs::read(&path).map_err(CheckpointError::io("read", &path))?;
        Ok((path, bytes))
    };
    let (path, bytes) = read(STATE)?;
    let state =
        serde_json::from_slice(&bytes).map_err(|e| CheckpointError::malformed(&path, e.to_string()))?;
    let (path, bytes) = read(CONFIG)?;
    let config = String::from_utf8(bytes).map_err(|e| CheckpointError::malformed(&path, e.to_string()))?;
    let snapshot = Snapshot {
        model: read_safetensors(&folder.join(MODEL))?,
        optimizer: read_safetensors(&folder.join(OPTIMIZER))?,
        state,
        config,
        phase: manifest.phase.clone(),
        parent: manifest.parent.clone(),
        frozen: manifest.frozen.clone(),
    };
    Ok((manifest, snapshot))
}
