//! Tensors on their way from one program's names and layout to another's: planned from headers, read one at a time.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{Announced, Dtype, HostTensor, WeightSource};

use crate::error::TrainError;
use crate::tensors::{to_host, to_torch};

/// Type and sizes of a tensor that is not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

pub(super) type Infos = BTreeMap<String, Info>;

/// Tensors that are known before they are read.
pub(super) trait Tensors {
    /// Every name.
    fn infos(&self) -> Infos;
    /// Reads one of them.
    fn read(&mut self, name: &str) -> Result<HostTensor, TrainError>;
}

impl Tensors for WeightSource {
    fn infos(&self) -> Infos {
        let one = |(name, dtype, shape): (&str, Dtype, &[usize])| {
            (name.to_owned(), Info { dtype, shape: shape.to_vec() })
        };
        WeightSource::infos(self).map(one).collect()
    }

    fn read(&mut self, name: &str) -> Result<HostTensor, TrainError> {
        WeightSource::read(self, name)?.ok_or_else(|| TrainError::Weights {
            path: self.path().to_owned(),
            detail: format!("{name} is missing"),
        })
    }
}

/// How a tensor comes about. Names are those of the source.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Recipe {
    /// As it is.
    Copy(String),
    /// `[query ; 0 ; value]`: EVA's keys have no bias.
    QkvBias { query: String, value: String },
    /// Rows of three tensors, one after another.
    Concat([String; 3]),
    /// The `index`-th third of the rows; with `zero_middle` the second third must be zeros.
    Third { of: String, index: usize, zero_middle: bool },
    /// Rows of `heads` rotary heads from llama.cpp's order to `rotate_half`'s.
    HalfSplit { of: String, heads: i64 },
    /// One row more, which is row `row` again.
    RepeatRow { of: String, row: usize },
    /// Position embeddings on another grid.
    Resized { of: String, grid: i64, align_corners: bool },
    /// 0, 1, 2, ..., `[1, n]`.
    Positions(usize),
}

/// A tensor with its new name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    pub name: String,
    pub info: Info,
    pub recipe: Recipe,
}

impl Planned {
    pub fn announced(&self) -> Announced {
        Announced { name: self.name.clone(), dtype: self.info.dtype, shape: self.info.shape.clone() }
    }
}

/// A source under other names.
pub(super) struct Renamed {
    source: Box<dyn Tensors>,
    planned: BTreeMap<String, Planned>,
}

impl Renamed {
    pub fn new(source: Box<dyn Tensors>, planned: Vec<Planned>) -> Self {
        Self { source, planned: planned.into_iter().map(|it| (it.name.clone(), it)).collect() }
    }
}

impl Tensors for Renamed {
    fn infos(&self) -> Infos {
        self.planned.iter().map(|(name, it)| (name.clone(), it.info.clone())).collect()
    }

    fn read(&mut self, name: &str) -> Result<HostTensor, TrainError> {
        match self.planned.get(name) {
            Some(planned) => cook(self.source.as_mut(), planned),
            None => Err(unusable(name, "was never planned")),
        }
    }
}

/// Reads what `planned` needs and makes it.
///
/// # Errors
/// [`TrainError::Checkpoint`] when something cannot be read or the numbers do not allow it.
pub(super) fn cook(source: &mut dyn Tensors, planned: &Planned) -> Result<HostTensor, TrainError> {
    make(source, planned)
        .and_then(|tensor| planned.announced().check(&tensor).map(|()| tensor).map_err(TrainError::from))
        .map_err(|error| match error {
            TrainError::Checkpoint(checkpoint::CheckpointError::Tensor { name, reason })
                if name.is_empty() =>
            {
                unusable(&planned.name, &reason)
            }
            other => other,
        })
}

fn make(source: &mut dyn Tensors, planned: &Planned) -> Result<HostTensor, TrainError> {
    let shape = || planned.info.shape.clone();
    match &planned.recipe {
        Recipe::Copy(from) => source.read(from),
        Recipe::QkvBias { query, value } => {
            let (query, value) = (source.read(query)?, source.read(value)?);
            let bytes = [&query.bytes[..], &vec![0; query.bytes.len()], &value.bytes].concat();
            Ok(HostTensor { dtype: query.dtype, shape: shape(), bytes })
        }
        Recipe::Concat([first, others @ ..]) => {
            let HostTensor { dtype, mut bytes, .. } = source.read(first)?;
            for other in others {
                bytes.extend(source.read(other)?.bytes);
            }
            Ok(HostTensor { dtype, shape: shape(), bytes })
        }
        Recipe::Third { of, index, zero_middle } => {
            let whole = source.read(of)?;
            let len = whole.bytes.len() / 3;
            let third = |index: usize| &whole.bytes[index * len..(index + 1) * len];
            // -0.0 would be lost as well
            if *zero_middle && third(1).iter().any(|byte| *byte != 0) {
                return Err(unusable(of, "has a bias of keys, for which the other side has no parameter"));
            }
            Ok(HostTensor { dtype: whole.dtype, shape: shape(), bytes: third(*index).to_vec() })
        }
        Recipe::HalfSplit { of, heads } => checkpoint::foreign::llama::half_split(source.read(of)?, *heads)
            .ok_or_else(|| unusable(of, "its rows are no whole heads")),
        Recipe::RepeatRow { of, row } => {
            let HostTensor { dtype, shape: rows, mut bytes } = source.read(of)?;
            let len = bytes.len() / rows.first().copied().unwrap_or(1).max(1);
            bytes.extend_from_within(row * len..(row + 1) * len);
            Ok(HostTensor { dtype, shape: shape(), bytes })
        }
        Recipe::Resized { of, grid, align_corners } => {
            let table = to_torch(&source.read(of)?);
            Ok(to_host(&model::vision::resize_positions(&table, *grid, *align_corners)))
        }
        Recipe::Positions(count) => {
            let values: Vec<i64> = (0..*count).map(|position| position as i64).collect();
            Ok(HostTensor::from_i64(&planned.info.shape, &values)?)
        }
    }
}

fn unusable(name: &str, reason: &str) -> TrainError {
    checkpoint::CheckpointError::Tensor { name: name.to_owned(), reason: reason.to_owned() }.into()
}

/// The tensors whose names begin with `prefix`, without it, and the others' names.
pub(super) fn below(infos: &Infos, prefix: &str) -> (Infos, Vec<String>) {
    let mut inside = Infos::new();
    let mut others = Vec::new();
    for (name, info) in infos {
        match name.strip_prefix(prefix) {
            Some(rest) => {
                inside.insert(rest.to_owned(), info.clone());
            }
            None => others.push(name.clone()),
        }
    }
    (inside, others)
}

/// What makes a model: names and sizes.
pub(super) type Expected = BTreeMap<String, Vec<usize>>;

/// Adds a weight and a bias of a linear layer.
pub(super) fn expect_linear(expected: &mut Expected, name: &str, [outputs, inputs]: [usize; 2]) {
    expected.insert(format!("{name}.weight"), vec![outputs, inputs]);
    expected.insert(format!("{name}.bias"), vec![outputs]);
}

/// Adds a gain and a bias.
pub(super) fn expect_norm(expected: &mut Expected, name: &str, width: usize) {
    expected.insert(format!("{name}.weight"), vec![width]);
    expected.insert(format!("{name}.bias"), vec![width]);
}

/// All that is wrong with the weights of a model, told at once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    missing: Vec<String>,
    unexpected: Vec<String>,
    misshapen: Vec<String>,
}

impl Problems {
    /// Something that belongs to no part of the model.
    pub fn unexpected(&mut self, name: impl Into<String>) {
        self.unexpected.push(name.into());
    }

    /// Compares what is planned with what is expected; `called` gives the name that the user's file has.
    pub fn compare(&mut self, planned: &[Planned], expected: &Expected, called: impl Fn(&str) -> String) {
        let infos: BTreeMap<&str, &Info> =
            planned.iter().map(|planned| (planned.name.as_str(), &planned.info)).collect();
        for (name, shape) in expected {
            match infos.get(name.as_str()) {
                None => self.missing.push(called(name)),
                Some(info) if info.shape != *shape => {
                    self.misshapen.push(format!("{} is {:?}, wanted {shape:?}", called(name), info.shape));
                }
                Some(_) => {}
            }
        }
        let unexpected = infos.keys().filter(|name| !expected.contains_key(**name));
        self.unexpected.extend(unexpected.map(|name| called(name)));
    }

    /// Ends the conversion when there is anything.
    ///
    /// # Errors
    /// [`TrainError::Weights`] with every name.
    pub fn finish(self, path: &Path) -> Result<(), TrainError> {
        let parts = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} ({}): {}", names.len(), names.join(", ")))
            .collect();
        if parts.is_empty() {
            return Ok(());
        }
        let detail = format!("the weights are not of this model; {}", parts.join("; "));
        Err(TrainError::Weights { path: path.to_owned(), detail })
    }
}
