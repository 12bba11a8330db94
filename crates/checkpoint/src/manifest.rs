//! `manifest.json`: what a checkpoint folder holds. Written last, so a folder without one was never finished.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::CheckpointError;
use crate::digest::FileDigest;

/// Name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";
/// Version of the folder format this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;
/// Manifests above this size are refused unread; 16 MiB describe a checkpoint of about 900 GB.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// What one checkpoint is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the folder format.
    pub format: u32,
    /// Optimizer steps done when it was taken.
    pub step: u64,
    /// The phase of the run it belongs to, in the caller's words ("stage1").
    pub phase: String,
    /// The checkpoint the phase started from, if it started from one.
    pub parent: Option<String>,
    /// Frozen weights the parameters were trained beside: name and digest. They are not copied into checkpoints.
    pub frozen: BTreeMap<String, String>,
    /// The files of the folder except this one.
    pub files: BTreeMap<String, FileDigest>,
}

/// The manifest with its own digest, as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    blake3: String,
}

impl Manifest {
    /// The file's bytes: one and the same for equal manifests, so that reading can compare byte by byte.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let blake3 = blake3::hash(&serde_json::to_vec(self)?).to_hex().to_string();
        let mut bytes = serde_json::to_vec_pretty(&Sealed { manifest: self.clone(), blake3 })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the manifest of a checkpoint folder and checks it against itself.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] when it is missing or was altered, [`CheckpointError::Malformed`] when another
    /// version of the format wrote it, [`CheckpointError::Io`] when it cannot be read.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CheckpointError::damaged(&path, "the file is missing"));
            }
            Ok(metadata) if metadata.len() > MAX_MANIFEST_BYTES => {
                return Err(CheckpointError::damaged(
                    &path,
                    format!("{} bytes are too many", metadata.len()),
                ));
            }
            found => found.and_then(|_| fs::read(&path)).map_err(CheckpointError::io("read", &path))?,
        };
        let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|e| unreadable(&path, &bytes, &e))?;
        if sealed.manifest.format != FORMAT {
            return Err(other_version(&path, u64::from(sealed.manifest.format)));
        }
        match sealed.manifest.encode() {
            Ok(expected) if expected == bytes => Ok(sealed.manifest),
            _ => Err(CheckpointError::damaged(&path, "the content differs from its own digest")),
        }
    }
}

/// A manifest that does not parse was altered, or a version wrote it that has other fields.
fn unreadable(path: &Path, bytes: &[u8], error: &serde_json::Error) -> CheckpointError {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    match value.as_ref().and_then(|v| v["manifest"]["format"].as_u64()) {
        Some(format) if format != u64::from(FORMAT) => other_version(path, format),
        _ => CheckpointError::damaged(path, format!("not a manifest: {error}")),
    }
}

fn other_version(path: &Path, format: u64) -> CheckpointError {
    CheckpointError::malformed(path, format!("folder format {format}, this program reads format {FORMAT}"))
}
