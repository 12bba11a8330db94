//! `eval.json`: the figures of a run, for people and for scripts. Its keys are documented in `docs/eval.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::MonitorError;
use crate::metrics_file::write_whole;
use crate::record::Phase;

/// The file's name inside the run directory.
pub const EVAL_FILE: &str = "eval.json";

/// Everything that the evaluation measured. Field names are the keys of the file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EvalFile {
    /// Retrieval by split (`concept_google`, `concept_twitter`, `style`, `both`, `val`).
    pub retrieval: BTreeMap<String, RetrievalScores>,
    /// Candidates of the retrieval by split: chance is k / candidates.
    #[serde(default)]
    pub candidates: BTreeMap<String, u64>,
    /// Captions by split.
    pub captions: BTreeMap<String, CaptionScores>,
    /// Wall-clock seconds by phase; of training phases the steps alone, over all sessions of the run.
    pub seconds: BTreeMap<Phase, f64>,
    /// Sum over all processes of the run of each one's largest resident set: an upper bound of what they held at once.
    pub peak_rss_bytes: u64,
    /// Pairs per second over all ranks, mean over the phase's steps, by training phase.
    pub pairs_per_second: BTreeMap<Phase, f64>,
}

/// Retrieval of one split, before and after re-ranking.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct RetrievalScores {
    /// By the similarity of the ITC features alone.
    pub itc: Directions,
    /// After the best ITC candidates were ranked again by the ITM head.
    pub itm: Directions,
}

/// Recalls both ways.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Directions {
    /// The picture is given, its caption is looked for.
    pub i2t: Recalls,
    /// The caption is given, its picture is looked for.
    pub t2i: Recalls,
}

/// Share of queries, 0 to 1, whose partner is among the first k.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Recalls {
    /// k = 1.
    pub r1: f64,
    /// k = 5.
    pub r5: f64,
    /// k = 10.
    pub r10: f64,
}

/// Captions of one split against their references, and the controls.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CaptionScores {
    /// Pictures that were captioned.
    pub count: u64,
    /// CIDEr as pycocoevalcap computes it, 0 to 10 (1.0 is published as 100 points).
    pub cider: f64,
    /// Share of captions that equal the reference after normalisation, 0 to 1.
    pub exact: f64,
    /// Share of captions whose set of words has an F1 of 0.5 or more with the reference's, 0 to 1.
    pub near: f64,
    /// CIDEr when the pictures are shuffled: what the language model gets without looking.
    pub cider_shuffled: f64,
    /// CIDEr of the control that never saw stage 1, after the same number of stage-2 steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cider_without_stage1: Option<f64>,
    /// Exact matches of that control, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_without_stage1: Option<f64>,
}

impl CaptionScores {
    /// How many times better than with shuffled pictures; `None` where the control scores nothing at all.
    pub fn ratio_to_shuffled(&self) -> Option<f64> {
        (self.cider_shuffled > 0.0).then(|| self.cider / self.cider_shuffled)
    }
}

impl EvalFile {
    /// Writes the file whole: temporary file, then rename.
    ///
    /// # Errors
    /// [`MonitorError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), MonitorError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(MonitorError::json(path))?;
        bytes.push(b'\n');
        write_whole(path, &bytes)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`MonitorError::Read`]; [`MonitorError::Json`] when fields are missing or of another type.
    pub fn read(path: &Path) -> Result<Self, MonitorError> {
        let bytes = fs::read(path).map_err(MonitorError::read(path))?;
        serde_json::from_slice(&bytes).map_err(MonitorError::json(path))
    }
}
