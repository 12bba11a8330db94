//! The sink that a training loop holds: it owns the writers, and nothing that goes wrong in them stops a run.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::error::MonitorError;
use crate::itm_alarm::ItmAlarm;
use crate::metrics_file::{METRICS_FILE, MetricsFile, Resumed};
use crate::progress::{LOG_EVERY_SECONDS, Progress};
use crate::record::{Phase, StepRecord};
use crate::tensorboard::{EventWriter, TENSORBOARD_DIR};

/// Where the run stands when the sink is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing was restored. Records of an earlier attempt are moved to `metrics.jsonl.old`.
    Fresh,
    /// The state after `step` steps of `phase` was restored: later records go, their steps will be taken again.
    Resumed {
        /// The phase of the restored checkpoint.
        phase: Phase,
        /// Its step.
        step: u64,
    },
}

/// Records to `metrics.jsonl`, TensorBoard and the terminal.
///
/// No call returns an error: a write that fails (a full disk) is counted, the first one is reported, and the next record
/// is tried again; a sink that cannot be opened stays off. On ranks other than 0 every call does nothing.
#[derive(Debug)]
pub struct Metrics {
    sinks: Option<Sinks>,
    opened: Instant,
    seconds_before: f64,
}

#[derive(Debug)]
struct Sinks {
    progress: Progress,
    file: Option<MetricsFile>,
    events: Option<EventWriter>,
    alarm: ItmAlarm,
    failures: u64,
    warnings: Vec<String>,
}

impl Metrics {
    /// Opens the sinks in `run_dir` (created if missing). `config` is the resolved config as text, shown by TensorBoard.
    pub fn open(run_dir: &Path, is_rank0: bool, start: Start, config: &str) -> Self {
        let opened = Instant::now();
        if !is_rank0 {
            return Self { sinks: None, opened, seconds_before: 0.0 };
        }
        let mut sinks = Sinks {
            progress: Progress::new(LOG_EVERY_SECONDS),
            file: None,
            events: None,
            alarm: ItmAlarm::default(),
            failures: 0,
            warnings: Vec::new(),
        };
        let resumed = sinks.open_file(run_dir, start);
        let seconds_before = resumed.kept.last().map_or(0.0, |record| record.time_seconds);
        sinks.open_events(run_dir, &resumed.kept, seconds_before, config);
        Self { sinks: Some(sinks), opened, seconds_before }
    }

    /// Seconds of running since the run began, over all its sessions; time between a crash and the restart is not in it.
    pub fn run_seconds(&self) -> f64 {
        self.seconds_before + self.opened.elapsed().as_secs_f64()
    }

    /// Starts the bar of a phase of `steps` steps, `done` of which were taken before.
    pub fn begin_phase(&mut self, phase: Phase, steps: u64, done: u64) {
        if let Some(sinks) = &mut self.sinks {
            sinks.progress.begin_phase(phase, steps, done);
        }
    }

    /// Ends the bar of the current phase.
    pub fn end_phase(&mut self) {
        if let Some(sinks) = &mut self.sinks {
            sinks.progress.end_phase();
        }
    }

    /// Moves the bar of a phase whose steps are no optimizer steps (pictures encoded, queries ranked), and prints a line
    /// at the usual interval: `done` of this phase, at `per_second`. Leaves no record.
    pub fn progress(&mut self, done: u64, per_second: f64) {
        if let Some(sinks) = &mut self.sinks {
            sinks.progress.advance(done, per_second);
        }
    }

    /// Writes one record everywhere, with [`Metrics::run_seconds`] as its `time_seconds`.
    pub fn record(&mut self, record: &StepRecord) {
        let time_seconds = self.run_seconds();
        let Some(sinks) = &mut self.sinks else { return };
        let record = &StepRecord { time_seconds, ..record.clone() };
        let is_new = match sinks.file.as_mut().map(|file| file.append(record)) {
            Some(Ok(is_new)) => is_new,
            Some(Err(error)) => {
                sinks.failed(&error);
                true
            }
            None => true,
        };
        if let (true, Some(Err(error))) = (is_new, sinks.events.as_mut().map(|events| events.record(record)))
        {
            sinks.failed(&error);
        }
        sinks.progress.record(record);
        if let Some(warning) = sinks.alarm.observe(record) {
            sinks.warn(warning);
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        if let Some(sinks) = &self.sinks {
            sinks.progress.line(text);
        }
    }

    /// Prints a warning, and keeps it for the report.
    pub fn warn(&mut self, text: impl AsRef<str>) {
        if let Some(sinks) = &mut self.sinks {
            sinks.warn(text.as_ref().to_owned());
        }
    }

    /// The warnings of this session, in order.
    pub fn warnings(&self) -> &[String] {
        self.sinks.as_ref().map_or(&[], |sinks| &sinks.warnings)
    }

    /// How many writes failed in this session.
    pub fn failures(&self) -> u64 {
        self.sinks.as_ref().map_or(0, |sinks| sinks.failures)
    }
}

impl Sinks {
    fn open_file(&mut self, run_dir: &Path, start: Start) -> Resumed {
        let path = run_dir.join(METRICS_FILE);
        let opened =
            std::fs::create_dir_all(run_dir).map_err(MonitorError::write(run_dir)).and_then(
                |()| match start {
                    Start::Fresh => MetricsFile::create(&path).map(|file| (file, Resumed::default())),
                    Start::Resumed { phase, step } => MetricsFile::resume(&path, phase, step),
                },
            );
        match opened {
            Ok((file, resumed)) => {
                self.file = Some(file);
                if resumed.past + resumed.torn > 0 {
                    let Resumed { past, torn, .. } = resumed;
                    let line = format!(
                        "{METRICS_FILE}: dropped {past} records past the checkpoint, {torn} torn lines"
                    );
                    self.progress.line(&line);
                }
                resumed
            }
            Err(error) => {
                self.failed(&error);
                Resumed::default()
            }
        }
    }

    /// A new event file with the records that stay, so that TensorBoard shows what `metrics.jsonl` holds.
    fn open_events(&mut self, run_dir: &Path, kept: &[StepRecord], seconds_before: f64, config: &str) {
        // The wall clock labels TensorBoard's time axis and decides nothing.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let open = || -> Result<EventWriter, MonitorError> {
            let mut events = EventWriter::create(&run_dir.join(TENSORBOARD_DIR), now - seconds_before)?;
            events.text("config", &indented(config))?;
            kept.iter().try_for_each(|record| events.record(record))?;
            Ok(events)
        };
        match open() {
            Ok(events) => self.events = Some(events),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &MonitorError) {
        self.failures += 1;
        if self.failures == 1 {
            let cause =
                std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
            self.warn(format!("{error}{cause}; training goes on, later failures are only counted"));
        }
    }

    fn warn(&mut self, text: String) {
        self.progress.line(&format!("warning: {text}"));
        self.warnings.push(text);
    }
}

/// Markdown that shows `text` as it is: a fence could be closed by the text, an indent cannot.
fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
