//! The progress page of a worker, read as its launcher reads it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use launch::WorkerPhase;
use nix::unistd::Pid;

/// Of its words the first: sequence number, phase, step.
const WORDS: usize = 3;

/// The page of one worker.
pub struct Page {
    file: File,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub step: u64,
    pub phase: u64,
}

impl Page {
    pub fn of(worker: Pid) -> Self {
        let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
        let page = environment.split(|&byte| byte == 0).find_map(|variable| {
            String::from_utf8_lossy(variable).strip_prefix("BLIP2_PROGRESS_PAGE=").map(str::to_owned)
        });
        Self { file: File::open(page.unwrap()).unwrap() }
    }

    /// The rank to which the launcher called a spare.
    pub fn called(&self) -> Option<usize> {
        // The last of the page: call and answer, each twice.
        let (mut bytes, length) = ([0; 8], self.file.metadata().unwrap().len());
        self.file.read_exact_at(&mut bytes, length - 32).unwrap();
        let number = u64::from_le_bytes(bytes);
        (number > 0).then_some((number >> 16) as usize % (1 << 16))
    }

    pub fn read(&self) -> Place {
        let mut bytes = [0; 8 * WORDS];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let word = |place: usize| u64::from_le_bytes(bytes[8 * place..][..8].try_into().unwrap());
        Place { step: word(2), phase: word(1) }
    }
}

impl Place {
    /// The phase by its name.
    pub fn name(&self) -> &'static str {
        let phases = [
            WorkerPhase::Start,
            WorkerPhase::Meet,
            WorkerPhase::Load,
            WorkerPhase::Features,
            WorkerPhase::Data,
            WorkerPhase::Compute,
            WorkerPhase::Exchange,
            WorkerPhase::Reduce,
            WorkerPhase::Save,
            WorkerPhase::Validate,
            WorkerPhase::Evaluate,
            WorkerPhase::End,
        ];
        phases.into_iter().find(|phase| self.is_in(*phase)).expect("a phase").name()
    }

    pub fn is_in(&self, phase: WorkerPhase) -> bool {
        self.phase == phase as u64
    }

    /// Phases are numbered in the order of a step.
    pub fn is_ahead_of(&self, other: &Self) -> bool {
        (self.step, self.phase) > (other.step, other.phase)
    }
}
