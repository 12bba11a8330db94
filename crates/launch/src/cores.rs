//! Which cores a process may use.

use std::num::NonZero;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Keeps this thread, and what it starts from now on, on one of the cores that it may use: the one with that `number`
/// among them, counted round. Which core that is; `None` where the system refuses.
pub fn pin_to_core(number: usize) -> Option<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).ok()?;
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect();
    let core = *allowed.get(number.checked_rem(allowed.len())?)?;
    let mut one = CpuSet::new();
    one.set(core).ok()?;
    sched_setaffinity(this, &one).ok()?;
    Some(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_cores_in_turn() {
        // On threads of their own, which alone get pinned.
        let pinned =
            |number: usize| std::thread::spawn(move || (pin_to_core(number), cores())).join().unwrap();
        let count = cores();
        assert_eq!((pinned(0).1, pinned(1).1), (1, 1));
        assert_eq!(pinned(0).0, pinned(count).0, "counted round");
        if count > 1 {
            assert_ne!(pinned(0).0, pinned(1).0);
        }
        assert_eq!(cores(), count, "this thread is as it was");
    }
}
