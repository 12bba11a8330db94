//! The unit of all dashboards: one record per optimizer step, and how it looks as a line of JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The parts of a run, in the order in which a run goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The frozen encoder fills the feature cache.
    Features,
    /// Representation learning: ITC, ITM, ITG (section 3.2 of the paper).
    Stage1,
    /// Generative learning from the frozen language model (section 3.3).
    Stage2,
    /// The control of figure 5: stage 2 from a Q-Former that never saw stage 1, the same number of steps.
    Stage2WithoutStage1,
    /// Retrieval and captions on the held-out splits.
    Evaluation,
}

impl Phase {
    /// The phase's name in `metrics.jsonl`, in TensorBoard tags and in `eval.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Stage1 => "stage1",
            Self::Stage2 => "stage2",
            Self::Stage2WithoutStage1 => "stage2_without_stage1",
            Self::Evaluation => "evaluation",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a record tells of: the step itself, or a look at the validation split after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// A step of the phase.
    #[default]
    Step,
    /// Losses and metrics on the validation split, measured after `step` steps.
    Validation,
}

/// One line of `metrics.jsonl`.
///
/// A value that is not finite is written as `null` (JSON has no NaN) and read back as NaN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The part of the run.
    pub phase: Phase,
    /// A step of the phase, or a validation after it.
    #[serde(default)]
    pub kind: RecordKind,
    /// Steps taken in this phase, this one included: the first step of a phase is 1.
    pub step: u64,
    /// Image-text pairs seen in this phase, summed over ranks.
    pub pairs_seen: u64,
    /// Losses by name: `loss`, `loss_itc`, `loss_itm`, `loss_itg`, `loss_lm`; nats, mean over the global batch.
    #[serde(with = "finite_map")]
    pub losses: BTreeMap<String, f64>,
    /// Learning rate of this step; absent where nothing is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Norm of the whole gradient before clipping; absent where nothing is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Pairs per second of this step, summed over ranks.
    #[serde(with = "finite")]
    pub pairs_per_second: f64,
    /// Wall-clock seconds of this step.
    #[serde(with = "finite")]
    pub step_seconds: f64,
    /// Seconds of `step_seconds` in which this rank waited for its batch.
    #[serde(with = "finite")]
    pub data_wait_seconds: f64,
    /// Seconds of `step_seconds` in which gradients were on their way to other ranks, waiting for slower ranks included.
    #[serde(with = "finite")]
    pub comm_seconds: f64,
    /// The part of `comm_seconds` in which this rank still had gradients to compute: what communication did not cost.
    #[serde(default, with = "finite")]
    pub comm_hidden_seconds: f64,
    /// Bytes that this rank handed to the gradient all-reduce in this step.
    pub bytes_reduced: u64,
    /// Largest resident set of the process that writes the record (rank 0) so far: [`crate::memory::peak_rss_bytes`].
    pub peak_memory_bytes: u64,
    /// Whatever else was measured, by name, such as `itm_accuracy`; ratios are 0 to 1.
    #[serde(default, with = "finite_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Samples of a stream left out so far in this phase, by reason, over all ranks and sessions; absent where none was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, u64>,
    /// Seconds of running since the run began, over all its sessions; [`crate::Metrics`] sets it.
    #[serde(with = "finite")]
    pub time_seconds: f64,
}

impl StepRecord {
    /// A record with its place and nothing measured yet.
    pub fn new(phase: Phase, kind: RecordKind, step: u64) -> Self {
        Self {
            phase,
            kind,
            step,
            pairs_seen: 0,
            losses: BTreeMap::new(),
            lr: None,
            grad_norm: None,
            pairs_per_second: 0.0,
            step_seconds: 0.0,
            data_wait_seconds: 0.0,
            comm_seconds: 0.0,
            comm_hidden_seconds: 0.0,
            bytes_reduced: 0,
            peak_memory_bytes: 0,
            metrics: BTreeMap::new(),
            left_out: BTreeMap::new(),
            time_seconds: 0.0,
        }
    }

    /// What may exist once per run.
    pub(crate) fn key(&self) -> (Phase, RecordKind, u64) {
        (self.phase, self.kind, self.step)
    }
}

/// A number as JSON, NaN and infinities as `null`.
mod finite {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*value) // serde_json writes null for what is not finite
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// Named numbers as JSON, NaN and infinities as `null`.
mod finite_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
    }
}
