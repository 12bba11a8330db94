//! The frozen encoder's features on disk: fp16 rows of fixed size, written once, read at random.
//!
//! A row is one view of one sample, `[P, V]`. The file is complete when its sidecar is there; the name of both is a
//! digest of all that the numbers depend on, so a changed transform or encoder never meets old features.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::TrainError;

const BYTES_PER_VALUE: usize = 2;

/// What the sidecar says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureShape {
    /// Samples of the index, bad ones included (their rows are never read).
    pub samples: usize,
    /// Views of each sample; view 0 is the plain one.
    pub views: usize,
    /// Tokens of a picture.
    pub tokens: i64,
    /// Width of a token.
    pub width: i64,
    /// Samples whose picture cannot be decoded, ascending.
    pub bad: Vec<usize>,
    /// Samples whose picture could not be read from the disk, ascending; another launch tries them again.
    #[serde(default)]
    pub unread: Vec<usize>,
}

/// An open feature file.
#[derive(Debug)]
pub struct FeatureFile {
    file: File,
    path: PathBuf,
    /// Its shape.
    pub shape: FeatureShape,
}

impl FeatureShape {
    fn row_values(&self) -> usize {
        (self.tokens * self.width) as usize
    }

    fn offset(&self, sample: usize, view: usize) -> u64 {
        ((sample * self.views + view) * self.row_values() * BYTES_PER_VALUE) as u64
    }

    /// True for a sample without rows.
    #[must_use]
    pub fn lacks(&self, sample: usize) -> bool {
        self.bad.binary_search(&sample).is_ok() || self.unread.binary_search(&sample).is_ok()
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offset(self.samples, 0)
    }
}

fn sidecar(path: &Path) -> PathBuf {
    path.with_extension("json")
}

impl FeatureFile {
    /// The complete file at `path`, or `None` where it was never finished.
    ///
    /// # Errors
    /// [`TrainError::Read`] when the sidecar is there and the rows are not.
    pub fn open(path: &Path) -> Result<Option<Self>, TrainError> {
        let Ok(text) = std::fs::read(sidecar(path)) else { return Ok(None) };
        let Ok(shape) = serde_json::from_slice::<FeatureShape>(&text) else { return Ok(None) };
        let refuse = |source| TrainError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(refuse)?;
        if file.metadata().map_err(refuse)?.len() != shape.bytes() {
            return Ok(None);
        }
        Ok(Some(Self { file, path: path.to_owned(), shape }))
    }

    /// A file to fill; every rank opens the same one and writes its own rows.
    ///
    /// # Errors
    /// [`TrainError::Write`].
    pub fn create(path: &Path, shape: FeatureShape) -> Result<Self, TrainError> {
        let refuse = |source| TrainError::Write { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(refuse)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(refuse)?;
        file.set_len(shape.bytes()).map_err(refuse)?;
        Ok(Self { file, path: path.to_owned(), shape })
    }

    /// Writes one view of one sample; `features` is `[P, V]`.
    ///
    /// # Errors
    /// [`TrainError::Write`].
    pub fn write(&self, sample: usize, view: usize, features: &Tensor) -> Result<(), TrainError> {
        let count = self.shape.row_values();
        let row = features.to_kind(tch::Kind::Half).to_device(tch::Device::Cpu).contiguous();
        let mut bytes = vec![0; count * BYTES_PER_VALUE];
        row.copy_data_u8(&mut bytes, count);
        self.file
            .write_all_at(&bytes, self.shape.offset(sample, view))
            .map_err(|source| TrainError::Write { path: self.path.clone(), source })
    }

    /// Waits until this rank's rows are on the disk.
    ///
    /// # Errors
    /// [`TrainError::Write`].
    pub fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(|source| TrainError::Write { path: self.path.clone(), source })
    }

    /// Marks the file complete, once every rank has synced its rows.
    ///
    /// # Errors
    /// [`TrainError::Write`].
    pub fn seal(&self, shape: &FeatureShape) -> Result<(), TrainError> {
        let text = serde_json::to_vec(shape).unwrap_or_default();
        Ok(checkpoint::write_durably(&sidecar(&self.path), &text)?)
    }

    /// The features of `rows` (sample, view), fp32 `[B, P, V]` on the CPU.
    ///
    /// # Errors
    /// [`TrainError::Read`].
    pub fn read(&self, rows: &[(usize, usize)]) -> Result<Tensor, TrainError> {
        let count = self.shape.row_values();
        let mut values = vec![0f32; rows.len() * count];
        let mut bytes = vec![0; count * BYTES_PER_VALUE];
        let mut halves = vec![f16::ZERO; count];
        for (&(sample, view), out) in rows.iter().zip(values.chunks_exact_mut(count)) {
            self.file
                .read_exact_at(&mut bytes, self.shape.offset(sample, view))
                .map_err(|source| TrainError::Read { path: self.path.clone(), source })?;
            for (half, pair) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                *half = f16::from_le_bytes([pair[0], pair[1]]);
            }
            halves.convert_to_f32_slice(out);
        }
        Ok(Tensor::from_slice(&values).view([rows.len() as i64, self.shape.tokens, self.shape.width]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_an_unsealed_file_does_not_count() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("features.bin");
        let shape = FeatureShape { samples: 3, views: 2, tokens: 2, width: 2, bad: vec![], unread: vec![] };
        let file = FeatureFile::create(&path, shape.clone()).expect("create");
        let row = Tensor::from_slice(&[1f32, -2.0, 0.5, 3.0]).view([2, 2]);
        file.write(2, 1, &row).expect("write");
        assert!(FeatureFile::open(&path).expect("open").is_none(), "not sealed yet");
        file.seal(&shape).expect("seal");
        let file = FeatureFile::open(&path).expect("open").expect("sealed");
        let read = file.read(&[(2, 1), (0, 0)]).expect("read");
        assert_eq!(read.size(), [2, 2, 2]);
        assert_eq!(
            Vec::<f32>::try_from(read.view([-1])).expect("values"),
            [1.0, -2.0, 0.5, 3.0, 0.0, 0.0, 0.0, 0.0]
        );
    }

    #[test]
    fn a_sidecar_that_knows_no_unread_samples_is_read() {
        let old = r#"{"samples": 3, "views": 1, "tokens": 2, "width": 2, "bad": [1]}"#;
        let mut shape: FeatureShape = serde_json::from_str(old).expect("a shape");
        shape.unread.push(2);
        assert_eq!([0, 1, 2].map(|sample| shape.lacks(sample)), [false, true, true]);
    }
}
