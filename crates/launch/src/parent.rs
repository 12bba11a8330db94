//! A worker does not outlive its launcher.

use nix::sys::{prctl, signal::Signal};
use nix::unistd::getppid;

use crate::{LaunchError, Source, World};

/// Asks the kernel to kill this process when our launcher ends; does nothing for a process it did not start.
///
/// Call it first thing, on the main thread: the kernel forgets the wish when the thread that made it ends. The worker
/// does this itself because `Command::pre_exec` is `unsafe`.
///
/// # Errors
/// [`LaunchError::ParentGone`] when the launcher ended before the kernel was asked, [`LaunchError::System`] when the
/// kernel refuses.
pub fn die_with_parent(world: &World) -> Result<(), LaunchError> {
    let (Source::Launcher { pid } | Source::Spare { pid }) = world.source else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| LaunchError::System {
        action: "ask to be ended with the launcher",
        source: errno.into(),
    })?;
    // A launcher that died before the line above sends no signal any more; then somebody else is the parent.
    match getppid().as_raw() == pid {
        true => Ok(()),
        false => Err(LaunchError::ParentGone { launcher_pid: pid }),
    }
}
