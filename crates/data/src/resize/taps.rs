//! What each output pixel reads, and how much of it.

use pulp::NullaryFnOnce;

use crate::kernel::Kernel;

/// Fractional bits of a tap: 32 bits less 8 for the pixel and 2 for the kernel's overshoot.
pub(crate) const PRECISION_BITS: u32 = 32 - 8 - 2;
/// The kernel is zero from here on, in units of the (widened) pixel.
const SUPPORT: f64 = 2.0;

/// For each output pixel the first source pixel it reads and the fixed-point weights from there on.
#[derive(Debug, Default)]
pub(super) struct Taps {
    in_size: usize,
    /// (first source pixel, number of weights) per output pixel.
    spans: Vec<(usize, usize)>,
    /// Of each output pixel, after a zero, and zeros behind them.
    weights: Vec<i32>,
    stride: usize,
    /// One pixel's weights before rounding.
    exact: Vec<f64>,
    /// See [`Pairs`], as all that follow.
    starts: Vec<usize>,
    halves: Vec<[i32; 2]>,
    each: usize,
}

/// Every weight as `high * 2^LOW_BITS + low`, in pairs `[high, low]` of the weights of two neighbours, two to a number. Pairs
/// begin at even source pixels: a weight of zero stands before the first one or behind the last one where that is needed.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    /// The first pair of source pixels of each output pixel.
    starts: &'a [usize],
    halves: &'a [[i32; 2]],
    /// Pairs of one output pixel; all have equally many.
    each: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Pairs<'a> {
    /// Output pixels.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Pairs of one output pixel.
    pub(super) fn each(&self) -> usize {
        self.each
    }

    /// The first pair of source pixels that `pixel` reads, and the weights from there on.
    #[inline(always)]
    pub(super) fn of(&self, pixel: usize) -> (usize, &'a [[i32; 2]]) {
        (self.starts[pixel], &self.halves[pixel * self.each..(pixel + 1) * self.each])
    }
}

/// Taps that are computed together.
const LANES: usize = 8;

/// [`Taps::compute`], compiled for whatever the processor has.
struct Compute<'a>(&'a mut Taps, [usize; 2]);

impl NullaryFnOnce for Compute<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.0.compute(self.1);
    }
}

impl Taps {
    /// Becomes the table from `in_size` to `out_size` pixels.
    pub(super) fn fill(&mut self, kernel: Kernel, in_size: usize, out_size: usize) {
        if (self.in_size, self.spans.len()) != (in_size, out_size) {
            kernel.vectorize(Compute(self, [in_size, out_size]));
        }
    }

    /// Loops of a fixed length that do not branch: they become vector code, which divides eight numbers at once.
    #[inline(always)]
    fn compute(&mut self, [in_size, out_size]: [usize; 2]) {
        self.in_size = in_size;
        let scale = in_size as f64 / out_size as f64;
        let filter_scale = scale.max(1.0);
        let (support, inverse) = (SUPPORT * filter_scale, 1.0 / filter_scale);
        let most = (support.ceil() as usize * 2 + 1).next_multiple_of(LANES);
        self.exact.resize(most, 0.0);
        self.stride = most + 4;
        self.spans.clear();
        self.starts.clear();
        self.halves.clear();
        self.weights.clear();
        self.weights.resize(out_size * self.stride, 0);
        for (pixel, weights) in self.weights.chunks_exact_mut(self.stride).enumerate() {
            let center = (pixel as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5) as usize).min(in_size);
            let count = end - first;
            for (block, values) in self.exact.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                for (lane, value) in values.iter_mut().enumerate() {
                    let tap = block * LANES + lane;
                    let at = first as f64 + f64::from(tap as i32);
                    // Nothing behind the last tap; a product, for a branch here would spread.
                    *value = cubic((at - center + 0.5) * inverse) * f64::from(u8::from(tap < count));
                }
            }
            let total: f64 = self.exact[..count].iter().sum();
            let total = if total == 0.0 { 1.0 } else { total };
            let blocks = weights[1..].as_chunks_mut::<LANES>().0.iter_mut();
            for (weights, values) in blocks.zip(self.exact.as_chunks::<LANES>().0) {
                let mut shifted = [0.0; LANES];
                for lane in 0..LANES {
                    shifted[lane] = fixed_point(values[lane] / total);
                }
                for lane in 0..LANES {
                    weights[lane] = shifted[lane].to_bits() as i32;
                }
            }
            self.spans.push((first, count));
        }
    }

    /// Output pixels.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether every output pixel is its source pixel.
    pub(super) fn keeps_size(&self) -> bool {
        self.in_size == self.spans.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride))
            .map(|(&(first, count), weights)| (first, &weights[1..=count]))
    }

    /// The weights for instructions that multiply 16-bit numbers in pairs.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pairs(&mut self) -> Pairs<'_> {
        let before = |first: usize| first % 2;
        if self.starts.is_empty() {
            let most = self.spans.iter().map(|&(first, count)| (before(first) + count).div_ceil(2)).max();
            self.each = most.unwrap_or(0);
            for (&(first, _), weights) in self.spans.iter().zip(self.weights.chunks_exact(self.stride)) {
                // With the zero before the first weight, or without.
                let weights = &weights[1 - before(first)..];
                self.halves.extend(weights.chunks_exact(2).take(self.each).map(|pair| {
                    let low = |weight: i32| weight & ((1 << LOW_BITS) - 1);
                    let high = |weight: i32| weight >> LOW_BITS;
                    [high(pair[1]) << 16 | (high(pair[0]) & 0xffff), low(pair[1]) << 16 | low(pair[0])]
                }));
                self.starts.push(first / 2);
            }
        }
        Pairs { starts: &self.starts, halves: &self.halves, each: self.each }
    }

    pub(super) fn first_used(&self) -> usize {
        self.spans.first().map_or(0, |&(first, _)| first)
    }

    pub(super) fn last_used(&self) -> usize {
        self.spans.last().map_or(0, |&(first, count)| first + count)
    }
}

/// Bits of the lower part of a split weight; the upper part keeps 12 and a sign.
#[cfg(target_arch = "x86_64")]
pub(crate) const LOW_BITS: i32 = 11;

/// `weight` in fixed point, rounded, in the lowest bits: `as` would ask of each weight alone whether it fits.
#[inline(always)]
fn fixed_point(weight: f64) -> f64 {
    // Numbers of this size have no fractional bits, and their lowest bits are those of the whole number.
    const SHIFT: f64 = 1.5 * (1u64 << 52) as f64;
    let half = 0.5f64.copysign(weight);
    (half + weight * f64::from(1u32 << PRECISION_BITS)).trunc() + SHIFT
}

/// The cubic convolution kernel, `a = -0.5`, written in Pillow's order of operations: the last bit depends on it.
#[inline(always)]
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    let near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    if x < 1.0 {
        near
    } else if x < 2.0 {
        far
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, written out.
    fn plain(in_size: usize, out_size: usize, pixel: usize) -> (usize, Vec<i32>) {
        let scale = in_size as f64 / out_size as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let center = (pixel as f64 + 0.5) * scale;
        let first = ((center - support + 0.5).max(0.0)) as usize;
        let end = ((center + support + 0.5) as usize).min(in_size);
        let exact = (first..end).map(|at| cubic((at as f64 - center + 0.5) * (1.0 / filter_scale)));
        let exact: Vec<f64> = exact.collect();
        let total: f64 = exact.iter().sum();
        let weight = |&value: &f64| {
            let value = if total == 0.0 { value } else { value / total };
            (if value < 0.0 { -0.5 } else { 0.5 } + value * f64::from(1u32 << PRECISION_BITS)) as i32
        };
        (first, exact.iter().map(weight).collect())
    }

    #[test]
    fn weights_are_those_of_the_definition_whichever_code_computes_them() {
        for kernel in Kernel::wide().into_iter().chain([Kernel::Scalar]) {
            let mut taps = Taps::default();
            for (in_size, out_size) in [
                (1, 1),
                (1, 9),
                (2, 1),
                (5, 4),
                (300, 224),
                (419, 224),
                (500, 224),
                (90, 224),
                (2000, 3),
                (7, 500),
            ] {
                taps.fill(kernel, in_size, out_size);
                let weights: Vec<(usize, Vec<i32>)> =
                    taps.iter().map(|(first, weights)| (first, weights.to_vec())).collect();
                let right: Vec<_> = (0..out_size).map(|pixel| plain(in_size, out_size, pixel)).collect();
                assert!(weights == right, "{kernel:?}, {in_size} to {out_size}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn pairs_hold_every_weight_at_its_place() {
        let mut taps = Taps::default();
        for (in_size, out_size) in [(1, 3), (9, 4), (40, 41), (419, 224)] {
            taps.fill(Kernel::Scalar, in_size, out_size);
            let whole: Vec<(usize, Vec<i32>)> =
                taps.iter().map(|(first, weights)| (first, weights.to_vec())).collect();
            let pairs = taps.pairs();
            for (pixel, (first, weights)) in whole.iter().enumerate() {
                let (start, halves) = pairs.of(pixel);
                let joined = halves.iter().flat_map(|&[high, low]| {
                    let of = |shift: u32| {
                        (i32::from((high >> shift) as i16) << LOW_BITS) + i32::from((low >> shift) as i16)
                    };
                    [of(0), of(16)]
                });
                let there: Vec<(usize, i32)> =
                    (start * 2..).zip(joined).filter(|&(_, weight)| weight != 0).collect();
                let right: Vec<(usize, i32)> =
                    (*first..).zip(weights.iter().copied()).filter(|&(_, weight)| weight != 0).collect();
                assert_eq!(there, right, "{in_size} to {out_size}, pixel {pixel}");
            }
        }
    }
}
