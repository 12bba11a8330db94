//! The alarm for the failure that stage 1 is known for: an ITM head that learns the prior and nothing else.

use crate::record::{Phase, RecordKind, StepRecord};

/// Entropy of one match among three pairs, ln 3 - 2/3 ln 2, in nats: what ITM costs when it ignores its input.
pub const ITM_PRIOR_ENTROPY: f64 = 0.636_514_168_294_813;

/// How near to the prior counts as stuck, nats.
const BAND: f64 = 0.01;
/// Steps at the start in which being at the prior is normal.
const GRACE_STEPS: u64 = 100;
/// Consecutive steps inside the band that make it an alarm.
const STUCK_STEPS: u64 = 100;

/// Watches `loss_itm` of stage 1 and speaks once.
#[derive(Debug, Default)]
pub(crate) struct ItmAlarm {
    inside: u64,
    spoken: bool,
}

impl ItmAlarm {
    /// The warning, in the step in which `loss_itm` has been at the prior for [`STUCK_STEPS`] steps.
    pub(crate) fn observe(&mut self, record: &StepRecord) -> Option<String> {
        if self.spoken || record.phase != Phase::Stage1 || record.kind != RecordKind::Step {
            return None;
        }
        let loss = *record.losses.get("loss_itm")?;
        let is_inside = record.step > GRACE_STEPS && (loss - ITM_PRIOR_ENTROPY).abs() <= BAND;
        self.inside = if is_inside { self.inside + 1 } else { 0 };
        if self.inside < STUCK_STEPS {
            return None;
        }
        self.spoken = true;
        Some(format!(
            "loss_itm has been within 0.6365 +- {BAND} for {STUCK_STEPS} steps (step {}): the head learned only the \
             1:2 prior of matches; see docs/dashboards.md",
            record.step
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss_itm: f64) -> StepRecord {
        let mut record = StepRecord::new(Phase::Stage1, RecordKind::Step, step);
        record.losses.insert("loss_itm".to_owned(), loss_itm);
        record
    }

    fn alarms(losses: impl Iterator<Item = f64>) -> Vec<u64> {
        let mut alarm = ItmAlarm::default();
        let steps = losses.zip(1u64..);
        steps.filter_map(|(loss, step)| alarm.observe(&record(step, loss)).map(|_| step)).collect()
    }

    #[test]
    fn a_stuck_head_is_told_once_at_step_200() {
        assert_eq!(alarms(std::iter::repeat_n(0.638, 1000)), [200]);
    }

    #[test]
    fn a_learning_head_is_left_alone() {
        let one_step_below = |step: u64| if step.is_multiple_of(90) { 0.60 } else { 0.6365 };
        assert!(alarms((1u64..1000).map(one_step_below)).is_empty());
        assert!(alarms((1u64..1000).map(|step| 0.69 - 0.0005 * step as f64)).is_empty());
        assert!(alarms(std::iter::repeat_n(f64::NAN, 1000)).is_empty());
    }

    #[test]
    fn other_phases_and_validations_do_not_count() {
        let mut alarm = ItmAlarm::default();
        for step in 1..1000 {
            let mut validation = record(step, 0.6365);
            validation.kind = RecordKind::Validation;
            assert_eq!(alarm.observe(&validation), None);
        }
        let two_thirds: f64 = 2.0 / 3.0;
        let entropy = -(two_thirds * two_thirds.ln() + (1.0 - two_thirds) * (1.0 - two_thirds).ln());
        assert!((ITM_PRIOR_ENTROPY - entropy).abs() < 1e-12);
    }
}
