//! The exit codes that schedulers and the launcher act on.

use std::process::ExitCode;

/// How a process of ours ends. SLURM and Kubernetes policies need one rule for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: the work is done.
    Done,
    /// 69: something outside is gone (a peer, a port, a disk); trying again may help.
    Unavailable,
    /// 73: another run holds the run folder.
    Busy,
    /// 75: stopped on request, with a checkpoint; put it back into the queue.
    Stopped,
    /// 78: the config, the data or the weights are wrong; a person must mend them.
    Config,
    /// 93: do not retry (no progress, numerics, data too bad).
    GiveUp,
}

impl Exit {
    /// The process exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Unavailable => 69,
            Self::Busy => 73,
            Self::Stopped => 75,
            Self::Config => 78,
            Self::GiveUp => 93,
        }
    }

    /// The meaning of a code; `None` for a code outside the contract, such as 101 of a panic.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::Done, Self::Unavailable, Self::Busy, Self::Stopped, Self::Config, Self::GiveUp]
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn every_code_of_the_contract_reads_back_and_no_other_does() {
        let known: Vec<i32> = (-1..=256).filter(|code| Exit::from_code(*code).is_some()).collect();
        assert_eq!(known, [0, 69, 73, 75, 78, 93]);
        assert_eq!(Exit::from_code(75), Some(Exit::Stopped));
        assert_eq!(Exit::from_code(73), Some(Exit::Busy));
    }
}
