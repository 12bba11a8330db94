//! `lr_schedules`: LAVIS's schedules by epoch and step. Runs of ours follow the paper's, `plan::Schedule`; these are for
//! replaying LAVIS's trajectories.

use serde::Deserialize;
use serde_json::Value;

use super::case::{Case, Tolerance};
use super::sheet::Row;
use crate::error::TrainError;

/// How LAVIS's learning rate falls after epoch 0, which holds the warm-up.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Decay {
    /// Half a cosine over the epochs.
    #[serde(rename = "linear_warmup_cosine_lr")]
    Cosine,
    /// A constant factor each epoch.
    #[serde(rename = "linear_warmup_step_lr")]
    Step,
}

/// LAVIS's `LinearWarmup*LRScheduler`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct LavisSchedule {
    pub max_epoch: u32,
    pub min_lr: f64,
    pub init_lr: f64,
    #[serde(default)]
    pub warmup_steps: u32,
    /// Negative, and without it: there is no warm-up.
    #[serde(default = "no_warmup", alias = "warmup_lr")]
    pub warmup_start_lr: f64,
    #[serde(default, alias = "lr_decay_rate")]
    pub decay_rate: Option<f64>,
}

fn no_warmup() -> f64 {
    -1.0
}

impl LavisSchedule {
    /// Learning rate of step `step` (from 0) of epoch `epoch`. A warm-up that is longer than epoch 0 is cut off.
    pub fn lr(&self, decay: Decay, epoch: u32, step: u32) -> f64 {
        if epoch == 0 {
            let start = if self.warmup_start_lr >= 0.0 { self.warmup_start_lr } else { self.init_lr };
            let warm = start + (self.init_lr - start) * f64::from(step) / f64::from(self.warmup_steps.max(1));
            return warm.min(self.init_lr);
        }
        match decay {
            Decay::Cosine => {
                let done = std::f64::consts::PI * f64::from(epoch) / f64::from(self.max_epoch);
                (self.init_lr - self.min_lr) * 0.5 * (1.0 + done.cos()) + self.min_lr
            }
            Decay::Step => {
                let factor = self.decay_rate.unwrap_or(1.0).powi(epoch.cast_signed());
                (self.init_lr * factor).max(self.min_lr)
            }
        }
    }
}

#[derive(Deserialize)]
struct Table {
    scheduler: Decay,
    params: LavisSchedule,
    lr: Vec<Vec<f64>>,
}

/// Runs the case: one line for each table.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    const FILE: &str = "expected.json";
    let limit = Tolerance { abs: 0.0, rel: case.value("tolerance", "rel")? };
    let expected: Value = case.json(FILE)?;
    let tables: Vec<Table> = case.part(FILE, &expected, &["tables"])?;
    let row = |(number, table): (usize, &Table)| {
        let lr = |(epoch, steps): (usize, &Vec<f64>)| {
            (0..steps.len()).map(move |step| table.params.lr(table.scheduler, epoch as u32, step as u32))
        };
        let ours: Vec<f64> = table.lr.iter().enumerate().flat_map(lr).collect();
        Row::list(&format!("lr of table {number}, {:?}", table.scheduler), &ours, &table.lr.concat(), limit)
    };
    Ok(tables.iter().enumerate().map(row).collect())
}
