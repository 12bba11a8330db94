//! A folder with a reference case: `case.toml`, tensors, texts, and tolerances.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::Tensor;

use crate::error::TrainError;
use crate::tensors::all_to_torch;

pub(super) const SETTINGS: &str = "case.toml";
pub(super) const WEIGHTS: &str = "weights.safetensors";
pub(super) const INPUTS: &str = "inputs.safetensors";
pub(super) const EXPECTED: &str = "expected.safetensors";

/// What a case says about itself; its other files are read when asked for.
#[derive(Debug)]
pub(super) struct Case {
    folder: PathBuf,
    settings: toml::Table,
}

/// How far a tensor may be off: `|a - b| <= abs + rel * max|b|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

impl Tolerance {
    /// Not at all.
    pub const EXACT: Self = Self { abs: 0.0, rel: 0.0 };
}

/// The tensors of one file of a case.
#[derive(Debug)]
pub(super) struct Tensors {
    path: PathBuf,
    pub map: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// The tensor `name`.
    pub fn get(&self, name: &str) -> Result<&Tensor, TrainError> {
        self.map.get(name).ok_or_else(|| broken(&self.path, &format!("there is no tensor {name}")))
    }

    /// The tensor `name`, which must have `dims` dimensions.
    pub fn with_dims(&self, name: &str, dims: usize) -> Result<Tensor, TrainError> {
        let tensor = self.get(name)?;
        match tensor.dim() == dims {
            true => Ok(tensor.shallow_clone()),
            false => {
                Err(broken(&self.path, &format!("{name} is {:?}, not {dims}-dimensional", tensor.size())))
            }
        }
    }
}

impl Case {
    /// Reads `case.toml` of `folder`.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(SETTINGS);
        let text = std::fs::read_to_string(&path).map_err(|error| broken(&path, &error.to_string()))?;
        let settings = text.parse().map_err(|error: toml::de::Error| broken(&path, &error.to_string()))?;
        Ok(Self { folder: folder.to_owned(), settings })
    }

    /// Where the case is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The table `[section]`, as far as `T` names its keys.
    pub fn section<T: DeserializeOwned>(&self, section: &str) -> Result<T, TrainError> {
        let table =
            self.settings.get(section).ok_or_else(|| self.broken(&format!("there is no [{section}]")))?;
        let read = serde_path_to_error::deserialize(table.clone());
        read.map_err(|error| {
            self.broken(&format!("[{section}] {}: {}", error.path(), error.inner().message()))
        })
    }

    /// The value of `key` in `[section]`.
    pub fn value<T: DeserializeOwned>(&self, section: &str, key: &str) -> Result<T, TrainError> {
        self.optional(section, key)?.ok_or_else(|| self.broken(&format!("[{section}] has no {key}")))
    }

    /// The value of `key` in `[section]`, if it is there.
    pub fn optional<T: DeserializeOwned>(&self, section: &str, key: &str) -> Result<Option<T>, TrainError> {
        let value = self.settings.get(section).and_then(|table| table.get(key)).cloned();
        let read = value.map(T::deserialize).transpose();
        read.map_err(|error: toml::de::Error| self.broken(&format!("[{section}] {key}: {}", error.message())))
    }

    /// `kind_abs` and, where given, `kind_rel` of `[tolerance]`.
    pub fn tolerance(&self, kind: &str) -> Result<Tolerance, TrainError> {
        let abs = self.value("tolerance", &format!("{kind}_abs"))?;
        let rel = self.optional("tolerance", &format!("{kind}_rel"))?.unwrap_or(0.0);
        Ok(Tolerance { abs, rel })
    }

    /// All tensors of `file`.
    pub fn tensors(&self, file: &str) -> Result<Tensors, TrainError> {
        let path = self.folder.join(file);
        let map = checkpoint::read_safetensors(&path).map_err(|error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            TrainError::Verify(format!("{error}{cause}"))
        })?;
        Ok(Tensors { path, map: all_to_torch(&map) })
    }

    /// `file`, which holds one JSON object.
    pub fn json(&self, file: &str) -> Result<Value, TrainError> {
        self.json_as(file)
    }

    /// `file`, which holds JSON of the shape `T`.
    pub fn json_as<T: DeserializeOwned>(&self, file: &str) -> Result<T, TrainError> {
        let path = self.folder.join(file);
        let bytes = std::fs::read(&path).map_err(|error| broken(&path, &error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| broken(&path, &error.to_string()))
    }

    /// The part of `value` (of `file`) behind `keys`, of the shape `T`.
    pub fn part<T: DeserializeOwned>(
        &self,
        file: &str,
        value: &Value,
        keys: &[&str],
    ) -> Result<T, TrainError> {
        let part = keys.iter().fold(value, |part, key| &part[*key]);
        T::deserialize(part)
            .map_err(|error| broken(&self.folder.join(file), &format!("{}: {error}", keys.join("."))))
    }

    /// An error about `case.toml`.
    pub fn broken(&self, problem: &str) -> TrainError {
        broken(&self.folder.join(SETTINGS), problem)
    }
}

/// A case that cannot be run: `problem` of the file at `path`.
pub(super) fn broken(path: &Path, problem: &str) -> TrainError {
    TrainError::Verify(format!("{}: {problem}", path.display()))
}
