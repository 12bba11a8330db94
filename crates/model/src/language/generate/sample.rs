//! Nucleus sampling: temperature, then the most probable few, then the nucleus, then one number for each draw.

use tch::{Kind, Tensor};

use super::Nucleus;
use super::rules::to_host;

impl Nucleus {
    /// A token for each row of `scores` `[R, N]`; `rows` are their numbers in the whole batch.
    pub(super) fn draw(&self, scores: &Tensor, rows: &[usize], step: usize) -> Vec<i64> {
        let vocabulary = scores.size()[1];
        let count = if self.top_k == 0 { vocabulary } else { (self.top_k as i64).min(vocabulary) };
        let scaled = scores.to_kind(Kind::Float) / self.temperature;
        let (sorted, ids) = scaled.sort_stable(true, -1, true);
        let (sorted, ids) = (sorted.narrow(1, 0, count), ids.narrow(1, 0, count));
        let probabilities = to_host(&sorted.softmax(-1, Kind::Float));
        let ids: Vec<i64> =
            Vec::try_from(ids.to_device(tch::Device::Cpu).contiguous().view([-1])).expect("integers");
        let count = count as usize;
        let draw = |(i, &row): (usize, &usize)| {
            let of = i * count..(i + 1) * count;
            let uniform = uniform(self.seed, row as u64, step as u64);
            ids[of.start + choose(&probabilities[of], self.top_p, uniform)]
        };
        rows.iter().enumerate().map(draw).collect()
    }
}

/// The place in `probabilities` (falling) that `uniform` (in `[0, 1)`) hits in the nucleus of mass `top_p`.
fn choose(probabilities: &[f32], top_p: f64, uniform: f64) -> usize {
    let mut before = 0.0;
    let mut sums = Vec::new();
    for &probability in probabilities {
        // The first stays whatever its mass; a token stays while those before it have less than `top_p`.
        if !sums.is_empty() && before >= top_p {
            break;
        }
        before += f64::from(probability);
        sums.push(before);
    }
    let target = uniform * before;
    sums.iter().position(|&sum| target < sum).unwrap_or(0)
}

/// A number in `[0, 1)` named by three others: SplitMix64's finaliser (Steele, Lea, Flood 2014) over each in turn.
fn uniform(seed: u64, row: u64, step: u64) -> f64 {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |mut bits: u64| {
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    };
    let bits = [seed, row, step]
        .into_iter()
        .fold(GAMMA, |key, part| mix(key.wrapping_add(GAMMA) ^ mix(part.wrapping_add(GAMMA))));
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nucleus_is_the_smallest_set_with_the_mass() {
        let falling = [0.5, 0.3, 0.15, 0.05];
        let hit = |top_p: f64| {
            let hits: std::collections::BTreeSet<usize> =
                (0..1000).map(|i| choose(&falling, top_p, f64::from(i) / 1000.0)).collect();
            hits.len()
        };
        assert_eq!([hit(1e-9), hit(0.49), hit(0.51), hit(0.79), hit(0.81), hit(1.0)], [1, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let falling = [0.5, 0.3, 0.15, 0.05];
        let mut counts = [0u32; 4];
        for row in 0..20_000 {
            counts[choose(&falling, 0.9, uniform(3, row, 1))] += 1;
        }
        let shares = counts.map(|count| f64::from(count) / 20_000.0);
        for (share, wanted) in shares.into_iter().zip([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]) {
            assert!((share - wanted).abs() < 0.015, "{shares:?}");
        }
    }
}
