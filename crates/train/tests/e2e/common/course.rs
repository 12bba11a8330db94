//! The course of a run: every number of it that must not depend on clocks, crashes or restarts.

use std::collections::BTreeMap;
use std::path::Path;

use monitor::{METRICS_FILE, Phase, RecordKind, StepRecord, read_records};

/// AdamW's in every config of these tests.
const BETA1: f32 = 0.9;

/// All records of a `metrics.jsonl`.
pub fn records(path: &Path) -> Vec<StepRecord> {
    read_records(path).unwrap_or_else(|error| panic!("{error}"))
}

/// The gradients of a phase's first step, by parameter, from the checkpoint of that step: AdamW's first moment is then
/// `1 - beta1` of them.
pub fn first_gradients(run_dir: &Path, phase: Phase) -> BTreeMap<String, Vec<f32>> {
    let found = checkpoint::latest_valid(&run_dir.join("checkpoints").join(phase.name())).unwrap().unwrap();
    assert_eq!(found.step, 1);
    let moments = found.snapshot.optimizer.iter();
    let gradients = moments.filter_map(|(key, moment)| {
        let name = key.strip_prefix("exp_avg.")?;
        Some((name.to_owned(), moment.to_f32_vec().iter().map(|value| value / (1.0 - BETA1)).collect()))
    });
    gradients.collect()
}

/// Named numbers at every step and validation of a run.
#[derive(Debug)]
pub struct Course(BTreeMap<(Phase, RecordKind, u64), BTreeMap<String, f64>>);

/// The course in a run folder; no step may be there twice.
pub fn course(run_dir: &Path) -> Course {
    let mut points = BTreeMap::new();
    for record in records(&run_dir.join(METRICS_FILE)) {
        let mut numbers: BTreeMap<String, f64> = record.losses.into_iter().chain(record.metrics).collect();
        numbers.insert("pairs_seen".into(), record.pairs_seen as f64);
        numbers.extend(record.lr.map(|lr| ("lr".into(), lr)));
        numbers.extend(record.grad_norm.map(|norm| ("grad_norm".into(), norm)));
        let key = (record.phase, record.kind, record.step);
        assert!(points.insert(key, numbers).is_none(), "{key:?} is there twice");
    }
    Course(points)
}

impl Course {
    /// Steps of a phase, in order.
    pub fn steps(&self, phase: Phase) -> Vec<u64> {
        let keys = self.0.keys().filter(|(of, kind, _)| (*of, *kind) == (phase, RecordKind::Step));
        keys.map(|(_, _, step)| *step).collect()
    }

    /// All up to and with a step of a phase.
    pub fn until(self, phase: Phase, step: u64) -> Self {
        let points = self.0.into_iter().filter(|((of, _, at), _)| (*of, *at) <= (phase, step));
        Self(points.collect())
    }

    /// One number at every step of a phase.
    pub fn curve(&self, phase: Phase, name: &str) -> Vec<f64> {
        let points = self.0.iter().filter(|((of, kind, _), _)| (*of, *kind) == (phase, RecordKind::Step));
        points.map(|(_, numbers)| numbers[name]).collect()
    }

    /// Equal to the last bit; says where the two part.
    pub fn assert_same(&self, other: &Self, what: &str) {
        let difference = self.difference(other);
        assert!(difference.is_none(), "{what}: {difference:?}");
    }

    /// Where the two part.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let keys = |course: &Self| course.0.keys().copied().collect::<Vec<_>>();
        if keys(self) != keys(other) {
            return Some(format!("steps differ: {:?} and {:?}", keys(self), keys(other)));
        }
        let bits = |numbers: &BTreeMap<String, f64>| {
            numbers.iter().map(|(name, value)| (name.clone(), value.to_bits())).collect::<Vec<_>>()
        };
        let both = self.0.iter().zip(other.0.values());
        let mut apart = both.filter(|((_, one), two)| bits(one) != bits(two));
        apart.next().map(|((key, one), two)| format!("{key:?}: {one:?} and {two:?}"))
    }
}
