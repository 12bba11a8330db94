//! What the person at the terminal sees: a bar per phase, and one log line at an interval.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::record::{Phase, RecordKind, StepRecord};

/// Seconds between two log lines when the caller does not say otherwise.
pub const LOG_EVERY_SECONDS: f64 = 10.0;

/// Bars and log lines on standard error. Without a terminal there are no bars, the lines remain.
#[derive(Debug)]
pub struct Progress {
    every: Duration,
    last_line: Option<Instant>,
    current: Option<CurrentPhase>,
}

#[derive(Debug)]
struct CurrentPhase {
    phase: Phase,
    steps: u64,
    done_before: u64,
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    /// No phase yet; a log line at most every `every_seconds`.
    pub fn new(every_seconds: f64) -> Self {
        let every = Duration::try_from_secs_f64(every_seconds).unwrap_or(Duration::ZERO);
        Self { every, last_line: None, current: None }
    }

    /// Starts the bar of a phase of `steps` steps, of which `done` were taken before (a resumed run).
    pub fn begin_phase(&mut self, phase: Phase, steps: u64, done: u64) {
        self.end_phase();
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr_with_hz(4),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(done);
        let template = "{prefix:>22} {wide_bar:.cyan/dim} {pos}/{len} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(phase.name());
        self.current = Some(CurrentPhase { phase, steps, done_before: done, began: Instant::now(), bar });
        self.last_line = None;
        self.line(&format!("{phase}: {steps} steps, {done} of them done"));
    }

    /// Moves the bar, and prints the log line when its interval is over or the phase is.
    pub fn record(&mut self, record: &StepRecord) {
        let current = self.current.as_ref().filter(|current| current.phase == record.phase);
        let (steps, eta) =
            current.map_or((None, None), |c| (Some(c.steps), c.eta(record.step, Instant::now())));
        if let (Some(current), RecordKind::Step) = (current, record.kind) {
            current.bar.set_position(record.step);
            current.bar.set_message(bar_message(record, eta));
        }
        let is_always_shown = record.kind == RecordKind::Validation || steps == Some(record.step);
        if is_always_shown || self.is_due() {
            self.line(&log_line(record, steps, eta));
            self.last_line = Some(Instant::now());
        }
    }

    /// Moves the bar of a phase without records, and prints a line when the interval is over or all is done.
    pub fn advance(&mut self, done: u64, per_second: f64) {
        let Some(current) = &self.current else { return };
        let eta = current
            .eta(done, Instant::now())
            .map_or(String::new(), |eta| format!("  eta {}", seconds_text(eta.as_secs_f64())));
        current.bar.set_position(done);
        current.bar.set_message(format!("{per_second:.1}/s{eta}"));
        let (phase, steps) = (current.phase, current.steps);
        if done >= steps || self.is_due() {
            self.line(&format!("{phase} {done}/{steps}  {per_second:.1}/s{eta}"));
            self.last_line = Some(Instant::now());
        }
    }

    /// Ends the bar of the current phase, if there is one.
    pub fn end_phase(&mut self) {
        if let Some(current) = self.current.take() {
            current.bar.finish_and_clear();
        }
    }

    fn is_due(&self) -> bool {
        self.last_line.is_none_or(|at| at.elapsed() >= self.every)
    }

    /// Prints a line above the bar. A closed standard error is nobody's problem here.
    pub fn line(&self, text: &str) {
        let print = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match &self.current {
            Some(current) => current.bar.suspend(print),
            None => print(),
        }
    }
}

impl CurrentPhase {
    /// What is left of the phase, at the mean pace of this session, everything between the steps included.
    fn eta(&self, step: u64, now: Instant) -> Option<Duration> {
        let taken = step.checked_sub(self.done_before).filter(|&taken| taken > 0)?;
        let seconds_per_step = now.duration_since(self.began).as_secs_f64() / taken as f64;
        Duration::try_from_secs_f64(seconds_per_step * self.steps.saturating_sub(step) as f64).ok()
    }
}

/// The record as one line of text, every number with its unit; `steps` is the phase's length.
pub fn log_line(record: &StepRecord, steps: Option<u64>, eta: Option<Duration>) -> String {
    let mut line = format!("{} step {}", record.phase, record.step);
    let _ = steps.map(|steps| write!(line, "/{steps}"));
    if record.kind == RecordKind::Validation {
        line.push_str("  validation");
    } else {
        let (wait, comm) = (record.data_wait_seconds, record.comm_seconds);
        let _ = write!(line, "  {:.1} pairs/s  step {:.3} s", record.pairs_per_second, record.step_seconds);
        let _ = write!(line, "  data wait {wait:.3} s  comm {comm:.3} s");
        if comm > 0.0 {
            let _ = write!(line, " ({:.0} % hidden)", 100.0 * record.comm_hidden_seconds / comm);
        }
    }
    for (name, value) in record.losses.iter().chain(&record.metrics) {
        let _ = write!(line, "  {name} {value:.4}");
    }
    let _ = record.lr.map(|lr| write!(line, "  lr {lr:.3e}"));
    let _ = record.grad_norm.map(|norm| write!(line, "  grad_norm {norm:.3}"));
    if !record.left_out.is_empty() {
        let _ = write!(line, "  left out {}", record.left_out.values().sum::<u64>());
    }
    if record.peak_memory_bytes > 0 {
        let _ = write!(line, "  memory {}", bytes_text(record.peak_memory_bytes));
    }
    let _ = eta.map(|eta| write!(line, "  eta {}", seconds_text(eta.as_secs_f64())));
    line
}

fn bar_message(record: &StepRecord, eta: Option<Duration>) -> String {
    let loss = record.losses.get("loss").or_else(|| record.losses.values().next());
    let loss = loss.map_or(String::new(), |loss| format!("  loss {loss:.3}"));
    let eta = eta.map_or(String::new(), |eta| format!("  eta {}", seconds_text(eta.as_secs_f64())));
    format!("{:.1} pairs/s{loss}{eta}", record.pairs_per_second)
}

/// `1.9 GiB`, `310 MiB`, `12 B`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b >= 1024f64.powi(3) => format!("{:.2} GiB", b / 1024f64.powi(3)),
        b if b >= 1024f64.powi(2) => format!("{:.1} MiB", b / 1024f64.powi(2)),
        b if b >= 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{b} B"),
    }
}

/// `2 h 03 min`, `7 min 12 s`, `41 s`, `0.8 s`.
pub(crate) fn seconds_text(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        0..=59 => format!("{whole} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_line_names_every_figure_and_its_unit() {
        let mut record = StepRecord::new(Phase::Stage1, RecordKind::Step, 120);
        record.losses.insert("loss_itc".to_owned(), 2.31234);
        record.metrics.insert("itm_accuracy".to_owned(), 0.75);
        (record.lr, record.grad_norm) = (Some(2.9e-4), Some(1.2345));
        (record.pairs_per_second, record.step_seconds) = (41.25, 1.5521);
        (record.data_wait_seconds, record.comm_seconds) = (0.012, 0.05);
        record.comm_hidden_seconds = 0.04;
        record.peak_memory_bytes = 2 << 30;
        record.left_out.extend([("image_corrupt".to_owned(), 2), ("unreadable".to_owned(), 1)]);
        assert_eq!(
            log_line(&record, Some(400), Some(Duration::from_secs(432))),
            "stage1 step 120/400  41.2 pairs/s  step 1.552 s  data wait 0.012 s  comm 0.050 s (80 % hidden)  \
             loss_itc 2.3123  itm_accuracy 0.7500  lr 2.900e-4  grad_norm 1.234  left out 3  memory 2.00 GiB  \
             eta 7 min 12 s"
        );
    }

    #[test]
    fn the_eta_counts_only_the_steps_of_this_session() {
        let began = Instant::now();
        let bar = ProgressBar::hidden();
        let current = CurrentPhase { phase: Phase::Stage2, steps: 100, done_before: 40, began, bar };
        assert_eq!(current.eta(40, began), None);
        let eta = current.eta(50, began + Duration::from_secs(20)).expect("steps were taken");
        assert_eq!(eta, Duration::from_secs(100));
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let texts = [0.84, 9.99, 59.0, 61.0, 3599.6, 7_380.0].map(seconds_text);
        assert_eq!(texts, ["0.8 s", "10.0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]);
        assert_eq!([12, 2048, 3 << 20].map(bytes_text), ["12 B", "2.0 KiB", "3.0 MiB"]);
    }
}
