//! Several sets at once, by ratio: which set stands where, and how often it stood before.
//!
//! Places are dealt in periods of [`PERIOD`] units (samples or batches). A period holds each set as often as its
//! share says, to one part in sixty thousand, in an order of its own. So both questions are arithmetic and a look
//! into one period, whatever the position; a set that has given its last epoch leaves, which starts a new phase with
//! the shares of those that stay.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::error::DataError;
use crate::order::SampleRef;
use crate::recent::Recent;
use crate::rng::{Rng, Stream};
pub use crate::share::Share;
use crate::share::{weights, wrong};

/// Units of a period: ratios with small denominators come out exactly.
const PERIOD: u64 = 60_000;

/// One set of a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct MixtureSet {
    /// Samples of each of its shards ([`crate::Index::shard_sizes`]).
    pub shard_sizes: Vec<usize>,
    /// How much of the mixture it is.
    pub share: Share,
    /// Passes after which it leaves the mixture; `None`: it stays.
    pub epochs: Option<u64>,
}

/// What is drawn from one set at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Each sample: batches are mixed.
    Sample,
    /// Each global batch of this many samples: batches are pure, as LAVIS draws them.
    Batch(u64),
}

/// What was drawn from one set.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Drawn {
    /// Samples.
    pub samples: u64,
    /// Passes over the set, the begun one as a fraction.
    pub epochs: f64,
}

impl Drawn {
    pub(crate) fn new(samples: u64, num_samples: usize) -> Self {
        Self { samples, epochs: samples as f64 / num_samples.max(1) as f64 }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mixture {
    seed: u64,
    sets: Vec<Blocks>,
    /// Samples of a unit.
    unit: u64,
    phases: Vec<Phase>,
    /// Units of all phases together, if they end.
    end: Option<u64>,
    periods: Recent<(usize, u64), Vec<u16>>,
}

/// A stretch in which the same sets take part.
#[derive(Debug)]
struct Phase {
    first_unit: u64,
    /// Units of each set before it.
    drawn: Vec<u64>,
    /// Units of each set in a period; 0 of those that have left.
    quotas: Vec<u64>,
}

impl Mixture {
    pub(crate) fn new(
        seed: u64,
        sets: &[MixtureSet],
        unit: Unit,
        shards_per_block: usize,
    ) -> Result<Self, DataError> {
        let weights = weights(sets.iter().map(|set| (set.share, set.shard_sizes.iter().sum())))?;
        let unit = match unit {
            Unit::Sample => 1,
            Unit::Batch(samples) => samples.max(1),
        };
        let (mut first_shard, mut first_sample) = (0, 0);
        let mut orders = Vec::with_capacity(sets.len());
        for (number, set) in sets.iter().enumerate() {
            let own_seed = Rng::new(seed, Stream::MixtureSet, &[number as u64]).bits();
            let sizes = &set.shard_sizes;
            orders.push(Blocks::new(own_seed, first_shard, first_sample, sizes, shards_per_block));
            first_shard += sizes.len();
            first_sample += sizes.iter().sum::<usize>();
        }
        let limits = sets.iter().zip(&orders).map(|(set, order)| {
            set.epochs.map(|epochs| epochs.saturating_mul(order.num_samples() as u64) / unit)
        });
        let limits: Vec<Option<u64>> = limits.collect();
        if let Some(set) = limits.iter().position(|limit| *limit == Some(0)) {
            return Err(wrong(set, "its epochs do not fill one unit; give it more, or leave it out"));
        }
        let mut mixture =
            Self { seed, sets: orders, unit, phases: vec![], end: None, periods: Recent::new(2) };
        mixture.plan_phases(&weights, &limits);
        Ok(mixture)
    }

    /// Phase after phase, until the sets that are left have no last epoch, or none is left.
    fn plan_phases(&mut self, weights: &[f64], limits: &[Option<u64>]) {
        let mut drawn = vec![0; weights.len()];
        let mut first_unit = 0;
        loop {
            let left = |set: usize| limits[set].is_none_or(|limit| drawn[set] < limit);
            let present: Vec<f64> = weights
                .iter()
                .enumerate()
                .map(|(set, weight)| if left(set) { *weight } else { 0.0 })
                .collect();
            if present.iter().all(|weight| *weight == 0.0) {
                self.end = Some(first_unit);
                return;
            }
            let number = self.phases.len();
            self.phases.push(Phase { first_unit, drawn: drawn.clone(), quotas: quotas(&present) });
            let last = limits.iter().enumerate().filter(|&(set, _)| present[set] > 0.0).filter_map(
                |(set, limit)| limit.map(|limit| self.unit_of(number, set, limit - drawn[set] - 1)),
            );
            let Some(last) = last.min() else { return };
            first_unit = last + 1;
            drawn = self.units_before(number, first_unit);
        }
    }

    /// The unit in which `set` stands for the `nth` time (from 0) in phase `number`.
    fn unit_of(&self, number: usize, set: usize, nth: u64) -> u64 {
        let phase = &self.phases[number];
        let quota = phase.quotas[set];
        let period = nth / quota;
        let dealt = self.period(number, period);
        let mut places = dealt.iter().enumerate().filter(|&(_, &dealt)| usize::from(dealt) == set);
        // A period holds the set `quota` times, so there is such a place.
        let place = places.nth((nth % quota) as usize).map_or(PERIOD, |(place, _)| place as u64);
        phase.first_unit + period * PERIOD + place
    }

    /// Units of each set before `unit`, which lies in phase `number` or at its end.
    fn units_before(&self, number: usize, unit: u64) -> Vec<u64> {
        let phase = &self.phases[number];
        let (period, place) = ((unit - phase.first_unit) / PERIOD, (unit - phase.first_unit) % PERIOD);
        let mut counts: Vec<u64> =
            phase.drawn.iter().zip(&phase.quotas).map(|(drawn, quota)| drawn + period * quota).collect();
        for &set in &self.period(number, period)[..place as usize] {
            counts[usize::from(set)] += 1;
        }
        counts
    }

    /// The sets of one period, in their order.
    fn period(&self, phase: usize, period: u64) -> std::sync::Arc<Vec<u16>> {
        self.periods.get((phase, period), || {
            let quotas = self.phases[phase].quotas.iter().enumerate();
            let mut dealt: Vec<u16> =
                quotas.flat_map(|(set, &quota)| std::iter::repeat_n(set as u16, quota as usize)).collect();
            Rng::new(self.seed, Stream::Mixture, &[phase as u64, period]).shuffle(&mut dealt);
            dealt
        })
    }

    fn phase_of(&self, unit: u64) -> usize {
        self.phases.partition_point(|phase| phase.first_unit <= unit) - 1
    }

    pub(crate) fn num_samples(&self) -> usize {
        self.sets.iter().map(Blocks::num_samples).sum()
    }

    pub(crate) fn end(&self) -> Option<u64> {
        self.end.map(|units| units * self.unit)
    }

    pub(crate) fn set_of(&self, sample: usize) -> Range<usize> {
        let found = self.sets.iter().map(Blocks::samples).find(|samples| samples.contains(&sample));
        found.unwrap_or(sample..sample + 1)
    }

    /// The set of each position of `positions`, which must lie before the end.
    fn sets_at(&self, positions: Range<u64>) -> Vec<u16> {
        let mut sets = Vec::with_capacity((positions.end - positions.start) as usize);
        let mut position = positions.start;
        while position < positions.end {
            let unit = position / self.unit;
            let number = self.phase_of(unit);
            let phase = &self.phases[number];
            let (period, place) = ((unit - phase.first_unit) / PERIOD, (unit - phase.first_unit) % PERIOD);
            let dealt = self.period(number, period);
            let phase_end = self.phases.get(number + 1).map_or(u64::MAX, |next| next.first_unit);
            for (unit, &set) in (unit..phase_end).zip(&dealt[place as usize..]) {
                let until = ((unit + 1) * self.unit).min(positions.end);
                while position < until {
                    sets.push(set);
                    position += 1;
                }
                if position == positions.end {
                    break;
                }
            }
        }
        sets
    }

    /// Samples of each set before `position`.
    fn samples_before(&self, position: u64) -> Vec<u64> {
        let unit = position / self.unit;
        let mut counts: Vec<u64> =
            self.units_before(self.phase_of(unit), unit).iter().map(|units| units * self.unit).collect();
        let begun = position % self.unit;
        if begun > 0
            && let Some(&set) = self.sets_at(unit * self.unit..unit * self.unit + 1).first()
        {
            counts[usize::from(set)] += begun;
        }
        counts
    }

    pub(crate) fn slice(&self, position: u64, count: usize) -> Vec<SampleRef> {
        let end = self.end().unwrap_or(u64::MAX);
        let positions = position.min(end)..position.saturating_add(count as u64).min(end);
        if positions.is_empty() {
            return Vec::new();
        }
        let before = self.samples_before(positions.start);
        let dealt = self.sets_at(positions);
        // What a slice draws from one set is contiguous in the set's own order.
        let mut drawn: Vec<_> = (0..self.sets.len())
            .map(|set| {
                let count = dealt.iter().filter(|&&at| usize::from(at) == set).count();
                self.sets[set].slice(before[set], count).into_iter()
            })
            .collect();
        dealt.iter().filter_map(|&set| drawn[usize::from(set)].next()).collect()
    }

    pub(crate) fn drawn(&self, position: u64) -> Vec<Drawn> {
        let before = self.samples_before(position.min(self.end().unwrap_or(u64::MAX)));
        before.iter().zip(&self.sets).map(|(&samples, set)| Drawn::new(samples, set.num_samples())).collect()
    }

    pub(crate) fn shards_from(&self, position: u64, count: usize) -> Vec<u32> {
        let before = self.samples_before(position.min(self.end().unwrap_or(u64::MAX)));
        let each = count.div_ceil(self.sets.len().max(1));
        before.iter().zip(&self.sets).flat_map(|(&samples, set)| set.shards_from(samples, each)).collect()
    }
}

/// Units of each set in a period: in proportion, at least one of each, the largest remainders rounded up.
fn quotas(weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let present = weights.iter().filter(|weight| **weight > 0.0).count() as u64;
    let shares: Vec<f64> = weights.iter().map(|weight| weight / sum * (PERIOD - present) as f64).collect();
    let mut quotas: Vec<u64> =
        weights.iter().zip(&shares).map(|(weight, share)| u64::from(*weight > 0.0) + *share as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).filter(|&set| weights[set] > 0.0).collect();
    by_remainder.sort_by(|&a, &b| shares[b].fract().total_cmp(&shares[a].fract()).then(a.cmp(&b)));
    let missing = PERIOD - quotas.iter().sum::<u64>();
    for &set in by_remainder.iter().cycle().take(missing as usize) {
        quotas[set] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(samples: usize, share: Share, epochs: Option<u64>) -> MixtureSet {
        MixtureSet { shard_sizes: vec![samples / 4; 4], share, epochs }
    }

    fn mixture(sets: &[MixtureSet], unit: Unit) -> Mixture {
        Mixture::new(5, sets, unit, 2).unwrap()
    }

    #[test]
    fn ratios_come_out_exactly_over_a_period() {
        let mixed =
            mixture(&[set(400, Share::Ratio(7.0), None), set(40, Share::Ratio(3.0), None)], Unit::Sample);
        let drawn = mixed.drawn(PERIOD);
        assert_eq!([drawn[0].samples, drawn[1].samples], [42_000, 18_000]);
        assert_eq!(drawn[1].epochs, 450.0);
        // And nearly so in any stretch: standard deviation 14.5 of 1000 draws.
        let count = mixed.slice(123_456, 1000).iter().filter(|at| at.index < 400).count();
        assert!(count.abs_diff(700) < 75, "{count}");
    }

    #[test]
    fn repeats_weigh_by_size() {
        let mixed = mixture(
            &[set(3000, Share::Repeats(1.0), None), set(1000, Share::Repeats(2.0), None)],
            Unit::Sample,
        );
        let drawn = mixed.drawn(PERIOD);
        assert_eq!([drawn[0].samples, drawn[1].samples], [36_000, 24_000]);
    }

    #[test]
    fn batches_are_pure() {
        let mixed =
            mixture(&[set(400, Share::Ratio(1.0), None), set(40, Share::Ratio(1.0), None)], Unit::Batch(8));
        for batch in 0..100 {
            let sets: Vec<bool> = mixed.slice(batch * 8, 8).iter().map(|at| at.index < 400).collect();
            assert!(sets.iter().all(|first| *first == sets[0]));
        }
    }

    #[test]
    fn a_set_leaves_after_its_epochs_and_then_all_ends() {
        let sets = [
            set(400, Share::Ratio(1.0), Some(2)),
            set(40, Share::Ratio(1.0), Some(3)),
            set(4000, Share::Ratio(2.0), Some(1)),
        ];
        let mixed = mixture(&sets, Unit::Sample);
        let end = 800 + 120 + 4000;
        assert_eq!(mixed.end(), Some(end));
        let mut all: Vec<(u64, usize)> =
            mixed.slice(0, 10_000).iter().map(|at| (at.epoch, at.index)).collect();
        all.sort_unstable();
        let passes = |range: Range<usize>, epochs: u64| {
            (0..epochs).flat_map(move |epoch| range.clone().map(move |index| (epoch, index)))
        };
        let mut expected: Vec<_> =
            passes(0..400, 2).chain(passes(400..440, 3)).chain(passes(440..4440, 1)).collect();
        expected.sort_unstable();
        assert_eq!(all, expected);
        assert!(mixed.slice(end, 5).is_empty());
        assert_eq!(mixed.drawn(u64::MAX)[1], Drawn { samples: 120, epochs: 3.0 });
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        let problem = |sets: &[MixtureSet], unit| Mixture::new(1, sets, unit, 2).unwrap_err().to_string();
        let ratio = set(40, Share::Ratio(1.0), None);
        assert!(
            problem(&[ratio.clone(), set(40, Share::Repeats(1.0), None)], Unit::Sample).contains("sets[1]")
        );
        assert!(problem(&[set(40, Share::Ratio(0.0), None)], Unit::Sample).contains("above 0"));
        assert!(problem(&[set(40, Share::Ratio(f64::NAN), None)], Unit::Sample).contains("above 0"));
        assert!(problem(&[set(0, Share::Ratio(1.0), None)], Unit::Sample).contains("no usable"));
        assert!(problem(&[set(40, Share::Ratio(1.0), Some(1))], Unit::Batch(41)).contains("one unit"));
        assert!(problem(&[], Unit::Sample).contains("needs a set"));
    }
}
