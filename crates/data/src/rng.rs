//! Counter-based random numbers: every draw is a pure function of what it is for.
//!
//! No generator travels through the program, so nothing has to be saved to resume: a draw is named by the run's
//! seed, a [`Stream`] (what is drawn) and the numbers it belongs to (epoch, sample, view). Two draws with the same
//! name are equal on every rank, worker and restart. The mixing is SplitMix64's (Steele, Lea, Flood 2014, variant
//! 13 of Stafford's constants): a key is folded from the name, and draw `n` is the mix of `key + n * gamma`.

/// What a random number is for. Streams never share numbers. The discriminants are part of the contract: changing
/// one changes every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stream {
    /// The permutation of an epoch; named by (epoch).
    Order = 1,
    /// Random resized crop; named by (sample, view).
    Crop = 2,
    /// Horizontal flip; named by (sample, view).
    Flip = 3,
    /// Rotation and translation; named by (sample, view).
    Affine = 4,
    /// Brightness, contrast, saturation, hue; named by (sample, view).
    ColorJitter = 5,
    /// Whether the view is grey; named by (sample, view).
    Grayscale = 6,
    /// Blur; named by (sample, view).
    Blur = 7,
    /// Which training text; named by (sample, epoch).
    Caption = 8,
    /// Which cached view; named by (sample, epoch).
    View = 9,
    /// Seed of one forward pass's dropout; named by (phase, step, micro-step, rank).
    Dropout = 10,
    /// Hard negatives of ITM; named by (step, pair in the global batch).
    HardNegative = 11,
    /// Which samples of a split are looked at; named by (split).
    Subset = 12,
    /// Seed of fresh weights; named by (phase).
    Init = 13,
    /// Order of the samples inside one block of shards; named by (epoch, block).
    Block = 14,
    /// Which set of a mixture stands where; named by (phase, period).
    Mixture = 15,
    /// Seed of one set of a mixture; named by (set).
    MixtureSet = 16,
    /// Operations of RandAugment; named by (sample, view).
    RandAugment = 18,
    /// Where a caption is split for an encoder-decoder; named by (pair in the phase).
    PrefixSplit = 19,
    /// What stands in for a bad sample, under no seed; named by (sample, draw).
    StandIn = 20,
    /// Waiting time before a download is tried again; named by (attempt). The one stream that no result depends on.
    Backoff = 17,
}

/// SplitMix64's increment: 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's finaliser: a bijection of 64 bits in which every input bit reaches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// The numbers of one named draw, in order.
#[derive(Debug, Clone)]
pub struct Rng {
    key: u64,
    counter: u64,
}

impl Rng {
    /// The numbers named by `seed`, `stream` and `ids` (their order and count matter).
    pub fn new(seed: u64, stream: Stream, ids: &[u64]) -> Self {
        let mut key = mix(seed.wrapping_add(GAMMA));
        key = mix(key ^ mix((stream as u64).wrapping_mul(GAMMA)));
        for &id in ids {
            key = mix(key.wrapping_add(GAMMA) ^ mix(id.wrapping_add(GAMMA)));
        }
        Self { key, counter: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key.wrapping_add(self.counter.wrapping_mul(GAMMA)))
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// A whole number in `[0, bound)` without bias (Lemire 2019); 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let low = product as u64;
            // The first `2^64 mod bound` low halves would be drawn once too often.
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// True with probability `probability`.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Shuffles in place (Fisher, Yates), from the back.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_name_never_change() {
        // A changed number here changes every run and breaks every resume: bump the run format when you must.
        let mut rng = Rng::new(42, Stream::Order, &[7]);
        assert_eq!([rng.bits(), rng.bits()], [4_845_721_018_591_882_450, 1_493_100_013_775_047_570]);
    }

    #[test]
    fn names_that_differ_anywhere_differ() {
        let first = |seed, stream, ids: &[u64]| Rng::new(seed, stream, ids).bits();
        let draws = [
            first(1, Stream::Crop, &[1, 2]),
            first(2, Stream::Crop, &[1, 2]),
            first(1, Stream::Flip, &[1, 2]),
            first(1, Stream::Crop, &[2, 1]),
            first(1, Stream::Crop, &[1]),
            first(1, Stream::Crop, &[1, 2, 0]),
        ];
        let distinct: std::collections::HashSet<_> = draws.iter().collect();
        assert_eq!(distinct.len(), draws.len());
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut rng = Rng::new(1, Stream::Order, &[]);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        // Binomial: standard deviation about 91.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(rng.below(1), 0);
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn neighbouring_names_are_unrelated() {
        // Mean of the first number over 10 000 neighbouring samples, and the correlation of neighbours.
        let draw = |sample| Rng::new(3, Stream::Crop, &[sample, 0]).uniform() - 0.5;
        let mean = (0..10_000).map(draw).sum::<f64>() / 1e4;
        let correlation = (0..10_000).map(|sample| draw(sample) * draw(sample + 1)).sum::<f64>() / 1e4 * 12.0;
        assert!(mean.abs() < 0.012, "{mean}");
        assert!(correlation.abs() < 0.05, "{correlation}");
    }
}
