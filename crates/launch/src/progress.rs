//! Where a worker stands, told without a message: a page of shared memory that it writes and the launcher reads.
//!
//! The page is an anonymous file (`memfd`) of a fixed size, written with one `pwrite`. A mapped file of atomics would
//! spare the system call (about a microsecond a phase), but every crate that maps one asks for `unsafe`, which this
//! room does not hold. Being anonymous it leaves nothing behind, however the launcher ends. A reader that meets a
//! writer sees a wrong checksum and reads again. Behind it lies what `call` says.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::call::{self, Call, Calls};
use crate::environment;
use crate::stop::StopFlag;

/// The launcher names a worker's page in this variable.
pub(crate) const PROGRESS_PAGE: &str = "BLIP2_PROGRESS_PAGE";

/// What a worker is doing, in the order of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerPhase {
    /// Reading its config.
    Start,
    /// Waiting for the other ranks to come.
    Meet,
    /// Loading weights; a stage begins with it.
    Load,
    /// Computing the features of pictures; `step` counts pictures.
    Features,
    /// Waiting for the pairs of the next step.
    Data,
    /// Forward and backward.
    Compute,
    /// Waiting, in the midst of that, for what other ranks send.
    Exchange,
    /// Averaging gradients with the other ranks and updating the weights.
    Reduce,
    /// Writing a checkpoint.
    Save,
    /// Scoring the selection splits.
    Validate,
    /// Scoring every split for the report.
    Evaluate,
    /// All done.
    End,
}

impl WorkerPhase {
    pub(crate) const ALL: [Self; 12] = [
        Self::Start,
        Self::Meet,
        Self::Load,
        Self::Features,
        Self::Data,
        Self::Compute,
        Self::Exchange,
        Self::Reduce,
        Self::Save,
        Self::Validate,
        Self::Evaluate,
        Self::End,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Meet => "meet",
            Self::Load => "load",
            Self::Features => "features",
            Self::Data => "data",
            Self::Compute => "compute",
            Self::Exchange => "exchange",
            Self::Reduce => "reduce",
            Self::Save => "save",
            Self::Validate => "validate",
            Self::Evaluate => "evaluate",
            Self::End => "end",
        }
    }

    /// Nothing but other ranks keeps a worker here.
    pub(crate) fn waits_for_peers(self) -> bool {
        matches!(self, Self::Meet | Self::Exchange | Self::Reduce)
    }

    fn index(self) -> usize {
        self as usize
    }
}

const PHASES: usize = WorkerPhase::ALL.len();
/// Sequence number, phase, step, time, time before, checkpoint; three numbers a phase; checksum.
const HEAD: usize = 6;
const WORDS: usize = HEAD + 3 * PHASES + 1;
const BYTES: usize = 8 * WORDS;
/// How often a worker that waits for a call looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What a page says. Times are nanoseconds of the machine's monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beat {
    /// Grows with every write.
    pub sequence: u64,
    pub phase: WorkerPhase,
    pub step: u64,
    /// Since when it has been in this phase at this step.
    pub since_ns: u64,
    /// Of the visit to `Compute` that goes on or that an exchange interrupts: how long it took before `since_ns`.
    before_ns: u64,
    /// Grows with each checkpoint that is on the disk; 0 before the first.
    pub saved: u64,
    visits: [Visits; PHASES],
}

/// How often a phase was left, how long it took in all and the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Visits {
    pub count: u64,
    pub total_ns: u64,
    pub last_ns: u64,
}

impl Beat {
    pub(crate) fn first(now_ns: u64) -> Self {
        let (phase, visits) = (WorkerPhase::Start, Default::default());
        Self { sequence: 0, phase, step: 0, since_ns: now_ns, before_ns: 0, saved: 0, visits }
    }

    pub(crate) fn visits(&self, phase: WorkerPhase) -> Visits {
        self.visits[phase.index()]
    }

    /// Leaves the phase it was in for another, or goes on to the next step of it.
    pub(crate) fn advance(&mut self, phase: WorkerPhase, step: u64, now_ns: u64) {
        self.leave(self.before_ns + now_ns.saturating_sub(self.since_ns));
        (self.step, self.before_ns) = (step, 0);
        self.enter(phase, now_ns);
    }

    /// Leaves `Compute` for an exchange, to come back to the same visit: what a step computes is learned as one duration,
    /// however many exchanges cut it into pieces. In another phase nothing happens.
    fn interrupt(&mut self, now_ns: u64) -> bool {
        let computes = self.phase == WorkerPhase::Compute;
        if computes {
            self.before_ns += now_ns.saturating_sub(self.since_ns);
            self.enter(WorkerPhase::Exchange, now_ns);
        }
        computes
    }

    /// Comes back from an exchange.
    fn resume(&mut self, now_ns: u64) {
        self.leave(now_ns.saturating_sub(self.since_ns));
        self.enter(WorkerPhase::Compute, now_ns);
    }

    fn leave(&mut self, took: u64) {
        let left = &mut self.visits[self.phase.index()];
        *left = Visits { count: left.count + 1, total_ns: left.total_ns + took, last_ns: took };
    }

    fn enter(&mut self, phase: WorkerPhase, now_ns: u64) {
        (self.sequence, self.phase, self.since_ns) = (self.sequence + 1, phase, now_ns);
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut words =
            vec![self.sequence, self.phase as u64, self.step, self.since_ns, self.before_ns, self.saved];
        words.extend(self.visits.iter().flat_map(|v| [v.count, v.total_ns, v.last_ns]));
        words.push(checksum(&words));
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` for a page that nobody has written, or that is being written now.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: Vec<u64> =
            bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok()).map(u64::from_le_bytes).collect();
        let (&sum, words) = words.split_last().filter(|(_, words)| words.len() == WORDS - 1)?;
        if sum != checksum(words) {
            return None;
        }
        let phase = *WorkerPhase::ALL.get(usize::try_from(words[1]).ok()?)?;
        let mut visits = [Visits::default(); PHASES];
        for (visits, numbers) in visits.iter_mut().zip(words[HEAD..].chunks_exact(3)) {
            *visits = Visits { count: numbers[0], total_ns: numbers[1], last_ns: numbers[2] };
        }
        let [sequence, _, step, since_ns, before_ns, saved] = *words.first_chunk::<HEAD>()?;
        Some(Self { sequence, phase, step, since_ns, before_ns, saved, visits })
    }
}

/// FNV-1a over words: enough to tell half of one write from half of another. Zeros do not pass.
fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// The machine's monotonic clock, the same for all its processes.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The worker's side. Without a launcher of ours it writes nowhere.
#[derive(Debug)]
pub struct ProgressPage {
    page: Option<File>,
    beat: Mutex<Beat>,
}

impl ProgressPage {
    /// The page that the launcher gave this process. Progress is never needed to train, so a page that cannot be
    /// opened is none.
    #[must_use]
    pub fn from_env() -> Self {
        let path = environment::read_filled(PROGRESS_PAGE);
        let page = path.and_then(|path| OpenOptions::new().read(true).write(true).open(path).ok());
        Self { page, beat: Mutex::new(Beat::first(monotonic_ns())) }
    }

    /// Says that this worker is now in `phase` of `step`; costs about a microsecond. What follows a step (a
    /// validation, a checkpoint) carries that step's number.
    pub fn write(&self, phase: WorkerPhase, step: u64) {
        self.advance(phase, |_| step);
    }

    /// Says that `phase`, which has no steps of its own, has got on.
    pub fn tick(&self, phase: WorkerPhase) {
        self.advance(phase, |beat| if beat.phase == phase { beat.step + 1 } else { 0 });
    }

    /// Runs `exchange`, which waits for other ranks, and says so if this worker computes a step; in other phases it is known
    /// who waits for whom. Costs two writes.
    pub fn exchanging<T>(&self, exchange: impl FnOnce() -> T) -> T {
        let mut interrupted = false;
        self.change(|beat| interrupted = beat.interrupt(monotonic_ns()));
        let result = exchange();
        if interrupted {
            self.change(|beat| beat.resume(monotonic_ns()));
        }
        result
    }

    /// Says that the checkpoint of `step` of the run's part number `part` (later parts count higher) is on the disk: the
    /// launcher forgets the restarts that it took to get there.
    pub fn saved(&self, part: u16, step: u64) {
        let saved = (u64::from(part) + 1) << 48 | step.min((1 << 48) - 1);
        // Asked after each step, and seldom news.
        if self.beat.lock().is_ok_and(|beat| beat.saved >= saved) {
            return;
        }
        self.change(|beat| {
            beat.sequence += 1;
            beat.saved = saved;
        });
    }

    /// Says that this worker has met the others of `generation` and outlives the loss of one: the launcher may call it.
    pub fn met(&self, generation: u64) {
        if let Some(file) = &self.page {
            let _ = Calls { file, offset: BYTES as u64 }.met(generation);
        }
    }

    /// Waits until the launcher calls to a generation behind `generation`, for `at_most` so long; `None` as well where
    /// somebody asks for a stop.
    #[must_use]
    pub fn wait_for_call(&self, generation: u64, at_most: Duration, stop: &StopFlag) -> Option<Call> {
        let calls = Calls { file: self.page.as_ref()?, offset: BYTES as u64 };
        let start = Instant::now();
        while start.elapsed() < at_most && !stop.requested() {
            match calls.called() {
                Some(call) if u64::from(call.generation) > generation => return Some(call),
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
        None
    }

    fn advance(&self, phase: WorkerPhase, step: impl FnOnce(&Beat) -> u64) {
        self.change(|beat| {
            let step = step(beat);
            beat.advance(phase, step, monotonic_ns());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Beat)) {
        let Some(page) = &self.page else { return };
        let Ok(mut beat) = self.beat.lock() else { return };
        change(&mut beat);
        // A launcher that is gone reads no more; then the kernel ends this process anyway.
        let _ = page.write_all_at(&beat.to_bytes(), 0);
    }
}

/// The launcher's side of one worker's page.
#[derive(Debug)]
pub(crate) struct PageReader {
    file: File,
}

impl PageReader {
    pub(crate) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"blip2-progress", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(BYTES as u64 + call::BYTES)?;
        Ok(Self { file })
    }

    /// Where the worker opens it: through this process, so that no descriptor has to be handed on.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Calls the worker, and hears whether it has come.
    pub(crate) fn calls(&self) -> Calls<'_> {
        Calls { file: &self.file, offset: BYTES as u64 }
    }

    /// What it says; `None` before the worker's first word.
    pub(crate) fn read(&self) -> Option<Beat> {
        let mut bytes = [0u8; BYTES];
        (0..4).find_map(|_| {
            self.file.read_exact_at(&mut bytes, 0).ok()?;
            Beat::from_bytes(&bytes)
        })
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
