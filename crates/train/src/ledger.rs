//! What a run cost, kept beside it so that a resumed run reports all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use monitor::Phase;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

const LEDGER_FILE: &str = "ledger.json";

/// Seconds by phase and the largest memory, over all launches of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    #[serde(skip)]
    path: PathBuf,
    /// Wall-clock seconds by phase; only a phase that ended is in here. Of the features: the sum over all launches that
    /// got through them; of a stage: its steps, over all launches.
    pub seconds: BTreeMap<Phase, f64>,
    /// Mean pairs per second by stage, all ranks together.
    pub pairs_per_second: BTreeMap<Phase, f64>,
    /// Bytes that each rank reduces in one step, by stage.
    pub bytes_per_step: BTreeMap<Phase, u64>,
    /// Trainable parameters by stage.
    pub trainable: BTreeMap<Phase, u64>,
    /// Largest resident memory, summed over the ranks of one launch.
    pub peak_rss_bytes: u64,
}

impl Ledger {
    /// Reads what earlier launches left in `run_dir`, or starts empty.
    #[must_use]
    pub fn open(run_dir: &Path) -> Self {
        let path = run_dir.join(LEDGER_FILE);
        let kept: Option<Self> =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, ..kept.unwrap_or_default() }
    }

    /// Writes it whole.
    ///
    /// # Errors
    /// [`TrainError::Write`].
    pub fn save(&self) -> Result<(), TrainError> {
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        checkpoint::write_durably(&self.path, &bytes).map_err(TrainError::from)
    }
}
