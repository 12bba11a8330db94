//! Our numbers beside those of the peers: runs reference cases and says where the two part.
//!
//! A case is a folder of weights, inputs and a peer's outputs; its `case.toml` names the family, the sizes and the
//! tolerances. One file for each kind of family. Whatever a case expects is compared, or the case is not met.

mod case;
mod ddp;
mod gradients;
mod hf;
mod metrics;
mod preprocess;
mod report;
mod rerank;
mod schedules;
mod sheet;
mod sizes;
mod stage1;
mod stage2;
mod text;
mod trajectory;
mod vision;
mod weights;

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use case::Case;
pub use ddp::verify_rank;
use report::Report;
use sheet::Row;

use crate::error::TrainError;

/// Runs one case; its family chooses which.
type Compare = fn(&Case) -> Result<Vec<Row>, TrainError>;

/// Every family that we run.
const FAMILIES: [(&str, Compare); 22] = [
    ("stage1", stage1::compare),
    ("stage1_ddp", ddp::compare),
    ("stage2_opt", stage2::compare),
    ("stage2_t5", stage2::compare_t5),
    ("generate_opt", hf::compare_generation),
    ("generate_t5", hf::compare_generation),
    ("convert_opt", hf::compare_conversion),
    ("convert_t5", hf::compare_conversion),
    ("trajectory_stage1", trajectory::compare_stage1),
    ("trajectory_stage2_opt", trajectory::compare_stage2),
    ("vision_eva", vision::compare_lavis),
    ("vision_clip", vision::compare_lavis),
    ("vision_eva_hf", vision::compare_blip2_hf),
    ("vision_clip_hf", vision::compare_clip_hf),
    ("features_pos_embed", vision::compare_positions),
    ("rerank", rerank::compare),
    ("lr_schedules", schedules::compare),
    ("metric_captions", metrics::compare_captions),
    ("metric_retrieval", metrics::compare_retrieval),
    ("metric_vqa", metrics::compare_vqa),
    ("text", text::compare),
    ("preprocess", preprocess::compare),
];

/// Runs each case and prints a table for it (with `json`: one object a line).
///
/// # Errors
/// [`TrainError::Verify`] when a tensor falls short, or a case is of an unknown family or cannot be read; it names all of
/// them. [`TrainError::Write`] when nobody reads what is printed.
pub fn verify(cases: &[PathBuf], json: bool) -> Result<(), TrainError> {
    let closed = |source| TrainError::Write { path: "standard output".into(), source };
    // Cases are small: more threads cost more than they save, and the peers had one.
    tch::set_num_threads(1);
    let mut not_met = Vec::new();
    for folder in cases {
        let report = run(folder);
        let text = match json {
            true => {
                serde_json::to_string(&report).map_err(|error| TrainError::Verify(error.to_string()))? + "\n"
            }
            false => report.table(),
        };
        std::io::stdout().write_all(text.as_bytes()).map_err(closed)?;
        if !report.ok {
            not_met.push(report.summary());
        }
    }
    match not_met.is_empty() {
        true => Ok(()),
        false => Err(TrainError::Verify(format!(
            "{} of {} cases not met\n  {}",
            not_met.len(),
            cases.len(),
            not_met.join("\n  ")
        ))),
    }
}

fn run(folder: &Path) -> Report {
    let name = folder.display().to_string();
    let case = match Case::open(folder) {
        Ok(case) => case,
        Err(error) => return Report::new(name, None, Err(error.to_string())),
    };
    let name = case.optional("case", "name").ok().flatten().unwrap_or(name);
    let family: String = match case.value("case", "family") {
        Ok(family) => family,
        Err(error) => return Report::new(name, None, Err(error.to_string())),
    };
    let outcome = match FAMILIES.iter().find(|(known, _)| *known == family) {
        Some((_, compare)) => guarded(|| compare(&case)),
        None => {
            let known: Vec<&str> = FAMILIES.iter().map(|(known, _)| *known).collect();
            let problem = format!("[case] family = {family:?} is unknown; we have {}", known.join(", "));
            Err(case.broken(&problem).to_string())
        }
    };
    Report::new(name, Some(family), outcome)
}

/// A case whose tensors do not fit each other makes libtorch panic; the other cases shall be run all the same.
fn guarded(compare: impl FnOnce() -> Result<Vec<Row>, TrainError>) -> Result<Vec<Row>, String> {
    match catch_unwind(AssertUnwindSafe(compare)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the case's tensors do not fit each other: {}", message(panic.as_ref()))),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    // libtorch adds a backtrace of its own.
    text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_else(|| "no reason given".into())
}
