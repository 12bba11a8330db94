//! How far a node has come, which launchers tell each other: so that ranks that wait for another node are not taken for
//! ranks that hang.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::progress::{Beat, WorkerPhase};

/// The rank of a node that has come least far, or of several nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// It merely waits for peers.
    waits: bool,
    step: u64,
    phase: WorkerPhase,
    /// Milliseconds since any rank of the node got on.
    silent_ms: u64,
}

impl Standing {
    /// Of one rank, as if it were the only one.
    pub(crate) fn of(beat: &Beat, silent: Duration) -> Self {
        let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        Self { waits: beat.phase.waits_for_peers(), step: beat.step, phase: beat.phase, silent_ms }
    }

    /// Of both together: the place of the one that has come less far, the silence of the one that got on last.
    pub(crate) fn and(self, other: Self) -> Self {
        let least = if other.is_behind(&self) { other } else { self };
        Self { silent_ms: self.silent_ms.min(other.silent_ms), ..least }
    }

    /// Has come less far than `other`, which may be waiting for it.
    pub(crate) fn is_behind(&self, other: &Self) -> bool {
        (self.waits, self.step, self.phase) < (other.waits, other.step, other.phase)
    }

    /// Since any rank got on.
    pub(crate) fn silent(&self) -> Duration {
        Duration::from_millis(self.silent_ms)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a rank in `phase` of `step` that has said nothing for `seconds`.
    pub(crate) fn standing(phase: WorkerPhase, step: u64, seconds: u64) -> Standing {
        let mut beat = Beat::first(0);
        beat.advance(phase, step, 0);
        Standing::of(&beat, Duration::from_secs(seconds))
    }

    #[test]
    fn of_several_the_least_far_stands_for_all_and_who_got_on_last_speaks_for_all() {
        let (saves, waits) = (standing(WorkerPhase::Save, 19, 50), standing(WorkerPhase::Reduce, 20, 3));
        for both in [saves.and(waits), waits.and(saves)] {
            assert_eq!(both, Standing { silent_ms: 3000, ..saves });
        }
        assert!(saves.is_behind(&waits) && !waits.is_behind(&saves) && !saves.is_behind(&saves));
    }
}
