//! `metrics.jsonl`: the records of a run, one line each, exactly one per step, also after crashes and roll-backs.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::error::MonitorError;
use crate::record::{Phase, RecordKind, StepRecord};

/// The file's name inside the run directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// A line longer than this is damage, not a record; it bounds what a reader holds in memory.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct MetricsFile {
    file: File,
    length: u64,
    path: PathBuf,
    written: HashSet<(Phase, RecordKind, u64)>,
}

/// What [`MetricsFile::resume`] found.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Resumed {
    /// The records that stay, in file order.
    pub kept: Vec<StepRecord>,
    /// Whole records beyond the restored step: their steps will be taken again.
    pub past: u64,
    /// Lines that are no whole record: a torn tail, or damage.
    pub torn: u64,
}

impl MetricsFile {
    /// Starts an empty file. One that is already there is kept as `metrics.jsonl.old`.
    ///
    /// # Errors
    /// [`MonitorError::Write`] when the folder is missing or not writable.
    pub fn create(path: &Path) -> Result<Self, MonitorError> {
        if path.exists() {
            fs::rename(path, path.with_extension("jsonl.old")).map_err(MonitorError::write(path))?;
        }
        Self::append_to(path, HashSet::new())
    }

    /// Goes on with the file of a run that was restored at `step` of `phase`.
    ///
    /// Dropped are: a torn tail (and any other line that is no record), records of `phase` beyond `step`, records of
    /// later phases that followed, and repeats. The rest stays, byte for byte. A file that is missing is an empty one.
    ///
    /// # Errors
    /// [`MonitorError::Read`] or [`MonitorError::Write`]; the old file is then as it was.
    pub fn resume(path: &Path, phase: Phase, step: u64) -> Result<(Self, Resumed), MonitorError> {
        let lines = if path.exists() { read_lines(path)? } else { Vec::new() };
        let mut resumed = Resumed::default();
        let (mut written, mut bytes) = (HashSet::new(), Vec::new());
        let mut phase_began = false;
        for line in &lines {
            let Some(record) = parse(line) else {
                resumed.torn += 1;
                continue;
            };
            phase_began |= record.phase == phase;
            let is_past = match record.phase == phase {
                true => record.step > step,
                false => phase_began && record.phase > phase,
            };
            if is_past || !written.insert(record.key()) {
                resumed.past += 1;
                continue;
            }
            bytes.extend_from_slice(line);
            resumed.kept.push(record);
        }
        if resumed.past + resumed.torn > 0 {
            write_whole(path, &bytes)?;
        }
        Ok((Self::append_to(path, written)?, resumed))
    }

    /// Adds `record` as one line, written by one call. A record that is already in the file (a validation repeated
    /// after a restart) is not written twice; returns whether it was written.
    ///
    /// # Errors
    /// [`MonitorError::Write`], for instance when the disk is full.
    pub fn append(&mut self, record: &StepRecord) -> Result<bool, MonitorError> {
        if self.written.contains(&record.key()) {
            return Ok(false);
        }
        let mut line = serde_json::to_vec(record).map_err(MonitorError::json(&self.path))?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            let _ = self.file.set_len(self.length); // half a line would spoil the next one
            return Err(MonitorError::write(&self.path)(error));
        }
        self.length += line.len() as u64;
        self.written.insert(record.key());
        Ok(true)
    }

    fn append_to(path: &Path, written: HashSet<(Phase, RecordKind, u64)>) -> Result<Self, MonitorError> {
        let open = || -> io::Result<(File, u64)> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(MonitorError::write(path))?;
        Ok(Self { file, length, path: path.to_owned(), written })
    }
}

/// All records of a `metrics.jsonl`, in file order; lines that are no record (a torn tail) are passed over.
///
/// # Errors
/// [`MonitorError::Read`] when the file cannot be read.
pub fn read_records(path: &Path) -> Result<Vec<StepRecord>, MonitorError> {
    Ok(read_lines(path)?.iter().filter_map(|line| parse(line)).collect())
}

/// Writes a file so that a reader finds the old one or the new one, never half of one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), MonitorError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial"); // the run directory has one writer, so one name is enough
    let partial = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(MonitorError::write(path))
}

/// A record, if the line is whole: parseable and ended by a newline.
fn parse(line: &[u8]) -> Option<StepRecord> {
    let body = line.strip_suffix(b"\n")?;
    serde_json::from_slice(body).ok()
}

/// The lines of the file with their newlines; a line above [`MAX_LINE_BYTES`] comes in pieces, so that damage is bounded.
fn read_lines(path: &Path) -> Result<Vec<Vec<u8>>, MonitorError> {
    let mut reader = BufReader::new(File::open(path).map_err(MonitorError::read(path))?);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut reader, MAX_LINE_BYTES as u64);
        if limited.read_until(b'\n', &mut line).map_err(MonitorError::read(path))? == 0 {
            return Ok(lines);
        }
        lines.push(line);
    }
}
