//! `report.html`: one file that shows what a run did, readable without a network, a script or this project.

mod chart;
mod curves;
mod data;
mod gallery;
mod html;
mod page;
mod tables;

use std::path::Path;

pub use data::{GalleryItem, Mime, PhaseFacts, ReferenceRow, ReportData, RunFacts, SplitFacts};

use crate::error::MonitorError;
use crate::metrics_file::write_whole;

/// The file's name inside the run directory.
pub const REPORT_FILE: &str = "report.html";

/// Writes the page whole (temporary file, then rename), so that a reader never sees half of it.
///
/// # Errors
/// [`MonitorError::Write`].
pub fn write_report(path: &Path, data: &ReportData) -> Result<(), MonitorError> {
    write_whole(path, page::page(data).as_bytes())
}
