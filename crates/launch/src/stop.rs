//! The wish to stop, as a flag that the training loop reads between steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use signal_hook::consts::SIGINT;
use signal_hook::{SigId, flag, low_level};

use crate::LaunchError;

/// Signals by which schedulers (SIGTERM, SLURM's early warning SIGUSR1, submitit's SIGUSR2) and persons (SIGINT) ask
/// for a stop.
const STOP_SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Set by SIGTERM, SIGUSR1, SIGUSR2 (schedulers) and SIGINT (a person). A second SIGINT ends the
/// process at once.
#[derive(Debug, Clone)]
pub struct StopFlag {
    requested: Arc<AtomicBool>,
}

impl StopFlag {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// [`LaunchError::System`] when the system refuses a handler.
    pub fn install() -> Result<Self, LaunchError> {
        let requested = Arc::new(AtomicBool::new(false));
        let interrupted = Arc::new(AtomicBool::new(false));
        let install = || -> io::Result<()> {
            // Before the flag is set below, so that it is the second SIGINT that finds it set.
            flag::register_conditional_default(SIGINT, Arc::clone(&interrupted))?;
            flag::register(SIGINT, interrupted)?;
            for signal in STOP_SIGNALS {
                flag::register(signal as i32, Arc::clone(&requested))?;
            }
            Ok(())
        };
        install().map_err(|source| LaunchError::System { action: "install signal handlers", source })?;
        Ok(Self { requested })
    }

    /// Whether somebody asked for a stop; stays true.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

/// The launcher's side: which signal came, to be handed on. Forgets its handlers when dropped.
#[derive(Debug)]
pub struct StopSignals {
    latest: Arc<AtomicUsize>,
    handlers: Vec<SigId>,
}

impl StopSignals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// [`LaunchError::System`] when the system refuses a handler.
    pub fn install() -> Result<Self, LaunchError> {
        let mut signals = Self { latest: Arc::new(AtomicUsize::new(0)), handlers: Vec::new() };
        let interrupted = Arc::new(AtomicBool::new(false));
        let install = |signals: &mut Self| -> io::Result<()> {
            signals.handlers.push(flag::register_conditional_default(SIGINT, Arc::clone(&interrupted))?);
            signals.handlers.push(flag::register(SIGINT, interrupted)?);
            for signal in STOP_SIGNALS {
                let number = signal as i32;
                let handler = flag::register_usize(
                    number,
                    Arc::clone(&signals.latest),
                    number.unsigned_abs() as usize,
                )?;
                signals.handlers.push(handler);
            }
            Ok(())
        };
        install(&mut signals)
            .map_err(|source| LaunchError::System { action: "install signal handlers", source })?;
        Ok(signals)
    }

    /// The last signal that asked for a stop.
    #[must_use]
    pub fn received(&self) -> Option<Signal> {
        let number = i32::try_from(self.latest.load(Ordering::Relaxed)).ok()?;
        Signal::try_from(number).ok()
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}
