//! Run records become dashboards: `metrics.jsonl`, TensorBoard, progress bars and the report.
//!
//! The crate gets host numbers and writes files; it opens no tensor and knows no rank but "is this rank 0". Training
//! never needs it to succeed: [`Metrics`] swallows and counts its own failures.

pub mod memory;
pub mod report;
pub mod tensorboard;

mod error;
mod eval_file;
mod itm_alarm;
mod metrics;
mod metrics_file;
mod progress;
mod record;

pub use error::MonitorError;
pub use eval_file::{CaptionScores, Directions, EVAL_FILE, EvalFile, Recalls, RetrievalScores};
pub use itm_alarm::ITM_PRIOR_ENTROPY;
pub use metrics::{Metrics, Start};
pub use metrics_file::{METRICS_FILE, MetricsFile, Resumed, read_records};
pub use progress::{LOG_EVERY_SECONDS, Progress, log_line};
pub use record::{Phase, RecordKind, StepRecord};
