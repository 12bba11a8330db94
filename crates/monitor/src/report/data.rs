//! What a report is made of. It can be stored beside the run and read again, so that a page can be made anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::MonitorError;
use crate::eval_file::{EvalFile, Recalls};
use crate::metrics_file::{METRICS_FILE, read_records, write_whole};
use crate::record::{Phase, StepRecord};

/// Everything on the page. Strings are text, never markup: captions come from outside.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReportData {
    /// Headline.
    pub title: String,
    /// One or two sentences under it: what was trained on what.
    pub summary: String,
    /// How the run was made.
    pub facts: RunFacts,
    /// The figures: the same object as `eval.json`.
    pub eval: EvalFile,
    /// The splits in the order of the page, and what they mean.
    pub splits: Vec<SplitFacts>,
    /// Rows of others to stand beside ours.
    pub references: Vec<ReferenceRow>,
    /// How the pictures of the gallery were chosen, as a sentence.
    pub gallery_choice: String,
    /// Held-out pictures with their captions.
    pub gallery: Vec<GalleryItem>,
    /// What the reader must know to judge the figures, such as what shortening cost.
    pub notes: Vec<String>,
    /// Licences and authors of pictures, captions and weights.
    pub attributions: Vec<String>,
    /// The curves: `metrics.jsonl`, which is not stored a second time.
    #[serde(skip)]
    pub records: Vec<StepRecord>,
}

/// How the run was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RunFacts {
    /// Config file's name.
    pub config_name: String,
    /// Seed of everything.
    pub seed: u64,
    /// Ranks.
    pub world_size: usize,
    /// Such as `cpu, bf16 autocast` or `cuda:0 NVIDIA H100`.
    pub device: String,
    /// One row per phase, in the order of the run.
    pub phases: Vec<PhaseFacts>,
    /// Further facts, in order: name and value.
    #[serde(default)]
    pub more: Vec<(String, String)>,
}

/// One phase of the run. Seconds and pairs per second stand in [`EvalFile`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseFacts {
    /// Which.
    pub phase: Phase,
    /// Optimizer steps (batches, where nothing is learnt).
    pub steps: u64,
    /// Image-text pairs seen, over all ranks.
    pub pairs: u64,
    /// Parameters with optimizer state; 0 where nothing is learnt.
    pub trainable_parameters: u64,
    /// Bytes that each rank hands to the gradient all-reduce per step.
    pub bytes_reduced_per_step: u64,
}

/// What a split is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SplitFacts {
    /// Its key in `eval.json`.
    pub name: String,
    /// What is unseen in it, as a phrase.
    pub description: String,
}

/// A row of somebody else's, or of a baseline, beside ours.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReferenceRow {
    /// Whose figures.
    pub name: String,
    /// The split's key.
    pub split: String,
    /// Image to text.
    pub i2t: Option<Recalls>,
    /// Text to image.
    pub t2i: Option<Recalls>,
}

/// One picture of the gallery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GalleryItem {
    /// The encoded picture, base64 in JSON.
    #[serde(with = "base64_bytes")]
    pub picture: Vec<u8>,
    /// Its format.
    pub mime: Mime,
    /// The split's key.
    pub split: String,
    /// The caption it has.
    pub reference: String,
    /// The caption that stage 2 gave it.
    pub generated: String,
    /// The caption of the control that never saw stage 1.
    pub generated_without_stage1: Option<String>,
    /// The nearest caption of the split by ITC.
    pub nearest_by_itc: Option<String>,
}

/// The picture formats that the data has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mime {
    /// `image/png`
    Png,
    /// `image/jpeg`
    Jpeg,
    /// `image/webp`
    Webp,
}

impl Mime {
    /// The format by the file's first bytes; `None` where it is none of the three.
    pub fn of(picture: &[u8]) -> Option<Self> {
        match picture {
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            _ => None,
        }
    }

    /// The media type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

impl ReportData {
    /// The stored data's name inside the run directory.
    pub const FILE: &str = "report.json";

    /// Stores the data in `run_dir`, without the records.
    ///
    /// # Errors
    /// [`MonitorError::Write`].
    pub fn write(&self, run_dir: &Path) -> Result<(), MonitorError> {
        let path = run_dir.join(Self::FILE);
        write_whole(&path, &serde_json::to_vec(self).map_err(MonitorError::json(&path))?)
    }

    /// Reads the data and the records of `run_dir`.
    ///
    /// # Errors
    /// [`MonitorError::Read`]; [`MonitorError::Json`].
    pub fn read(run_dir: &Path) -> Result<Self, MonitorError> {
        let path = run_dir.join(Self::FILE);
        let bytes = fs::read(&path).map_err(MonitorError::read(&path))?;
        let mut data: Self = serde_json::from_slice(&bytes).map_err(MonitorError::json(&path))?;
        data.records = read_records(&run_dir.join(METRICS_FILE))?;
        Ok(data)
    }

    /// The split's phrase, empty where none was given.
    pub(super) fn description(&self, split: &str) -> &str {
        self.splits.iter().find(|facts| facts.name == split).map_or("", |facts| facts.description.as_str())
    }

    /// The keys of `scores`: those named in `splits` first, in that order, then the others.
    pub(super) fn ordered<'a, T>(&self, scores: &'a BTreeMap<String, T>) -> Vec<(&'a str, &'a T)> {
        let place =
            |name: &str| self.splits.iter().position(|facts| facts.name == name).unwrap_or(usize::MAX);
        let mut ordered: Vec<_> = scores.iter().map(|(name, value)| (name.as_str(), value)).collect();
        ordered.sort_by_key(|(name, _)| place(name));
        ordered
    }
}

/// Bytes as base64 text.
mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
