//! A case's weights, LAVIS's names, in our models.

use std::collections::BTreeMap;

use model::{LanguageConfig, LanguageModel, VisionConfig, VisionEncoder, Weights};
use tch::{Device, Kind, Tensor, nn};

use super::case::{Case, WEIGHTS, broken};
use crate::build::copy_weights;
use crate::error::TrainError;
use crate::names::{LavisEntry, from_lavis};

/// A LAVIS state dict, taken apart.
pub(super) struct LavisWeights<'a> {
    case: &'a Case,
    /// By our names.
    trainable: BTreeMap<String, Tensor>,
    frozen: Weights,
    /// The language model's, without the prefix that says which.
    languages: BTreeMap<String, Tensor>,
}

impl<'a> LavisWeights<'a> {
    /// Reads the weights of `case`, or those of another case for it.
    pub fn read(case: &'a Case) -> Result<Self, TrainError> {
        let all = case.tensors(WEIGHTS)?.map;
        let (mut trainable, mut frozen, mut languages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in &all {
            match from_lavis(name) {
                Some(LavisEntry::Parameter(ours)) => {
                    trainable.insert(ours, tensor.shallow_clone());
                }
                Some(LavisEntry::CopyOf(original)) => {
                    // A copy that differs is a model that we do not have: there the two are not tied.
                    if !all.get(&original).is_some_and(|original| original == tensor) {
                        return Err(Self::broken(case, &format!("{name} is not a copy of {original}")));
                    }
                }
                Some(LavisEntry::Frozen) => {
                    frozen.insert(name.clone(), tensor.shallow_clone());
                    let prefixes = ["opt_model.", "t5_model.", "llm_model."];
                    if let Some(rest) = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)) {
                        languages.insert(rest.to_owned(), tensor.shallow_clone());
                    }
                }
                Some(LavisEntry::Buffer) => {}
                None => return Err(Self::broken(case, &format!("{name} belongs to no BLIP-2 of LAVIS"))),
            }
        }
        Ok(Self { case, trainable, frozen: Weights::new(frozen), languages })
    }

    /// The frozen encoder.
    pub fn vision(&mut self, config: &VisionConfig) -> VisionEncoder {
        VisionEncoder::new(config, &mut self.frozen, Kind::Float, Device::Cpu)
    }

    /// The frozen language model.
    pub fn language(&mut self, config: &LanguageConfig) -> LanguageModel {
        LanguageModel::new(config, &mut self.frozen, Kind::Float, Device::Cpu)
    }

    /// What is trained, and the language model, under Hugging Face's names.
    pub fn into_hugging_face(self) -> BTreeMap<String, Tensor> {
        let mut named = self.trainable;
        let language = self.languages.into_iter();
        named.extend(language.map(|(name, tensor)| (format!("language_model.{name}"), tensor)));
        named
    }

    /// Takes the trainable parameter `name` (ours) out.
    pub fn take(&mut self, name: &str) -> Result<Tensor, TrainError> {
        self.trainable
            .remove(name)
            .ok_or_else(|| Self::broken(self.case, &format!("there is nothing for {name}")))
    }

    /// Fills all of `store`; whatever is missing, misshapen or left over is an error.
    pub fn finish(self, store: &nn::VarStore) -> Result<(), TrainError> {
        let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
        let verify = |error: TrainError| TrainError::Verify(error.to_string());
        copy_weights(&variables, &self.trainable, &self.case.folder().join(WEIGHTS)).map_err(verify)?;
        let left: Vec<&str> =
            self.trainable.keys().filter(|name| !variables.contains_key(*name)).map(String::as_str).collect();
        if !left.is_empty() {
            return Err(Self::broken(self.case, &format!("no place for what we call {}", left.join(", "))));
        }
        self.frozen.finish().map_err(|error| Self::broken(self.case, &error.to_string()))
    }

    fn broken(case: &Case, problem: &str) -> TrainError {
        broken(&case.folder().join(WEIGHTS), problem)
    }
}
