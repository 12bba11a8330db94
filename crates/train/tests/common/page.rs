//! The progress page of a worker, read as its launcher reads it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use launch::WorkerPhase;
use nix::unistd::Pid;

/// Words of `launch::progress`: sequence number, phase, step, time, time before, checkpoint; three numbers a phase.
const HEAD: usize = 6;
const WORDS: usize = HEAD + 3 * 12;

/// The page of one worker.
pub struct Page {
    file: File,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub step: u64,
    pub phase: u64,
    /// How long the last averaging of gradients with its update took.
    pub last_reduce: Duration,
}

impl Page {
    pub fn of(worker: Pid) -> Self {
        let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
        let page = environment.split(|&byte| byte == 0).find_map(|variable| {
            String::from_utf8_lossy(variable).strip_prefix("BLIP2_PROGRESS_PAGE=").map(str::to_owned)
        });
        Self { file: File::open(page.unwrap()).unwrap() }
    }

    pub fn read(&self) -> Place {
        let mut bytes = [0; 8 * WORDS];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let word = |place: usize| u64::from_le_bytes(bytes[8 * place..][..8].try_into().unwrap());
        let last_reduce = Duration::from_nanos(word(HEAD + 3 * WorkerPhase::Reduce as usize + 2));
        Place { step: word(2), phase: word(1), last_reduce }
    }
}

impl Place {
    pub fn is_in(&self, phase: WorkerPhase) -> bool {
        self.phase == phase as u64
    }
}
