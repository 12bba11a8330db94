//! What each output pixel reads, and how much of it.

/// Fractional bits of a tap: 32 bits less 8 for the pixel and 2 for the kernel's overshoot.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;
/// The kernel is zero from here on, in units of the (widened) pixel.
const SUPPORT: f64 = 2.0;

/// For each output pixel the first source pixel it reads and the fixed-point weights from there on.
#[derive(Debug, Default)]
pub(super) struct Taps {
    in_size: usize,
    /// (first source pixel, number of weights) per output pixel.
    spans: Vec<(usize, usize)>,
    weights: Vec<i32>,
    stride: usize,
    /// One pixel's weights before rounding.
    exact: Vec<f64>,
    /// See [`Taps::split`].
    halves: Vec<[i32; 4]>,
}

impl Taps {
    /// Becomes the table from `in_size` to `out_size` pixels.
    pub(super) fn fill(&mut self, in_size: usize, out_size: usize) {
        if (self.in_size, self.spans.len()) == (in_size, out_size) {
            return;
        }
        self.in_size = in_size;
        let scale = in_size as f64 / out_size as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.halves.clear();
        self.weights.clear();
        self.weights.resize(out_size * self.stride, 0);
        let exact = &mut self.exact;
        for (pixel, weights) in self.weights.chunks_exact_mut(self.stride).enumerate() {
            let center = (pixel as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5) as usize).min(in_size);
            let inverse = 1.0 / filter_scale;
            exact.clear();
            exact.extend((first..end).map(|at| cubic((at as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            for (weight, &value) in weights.iter_mut().zip(exact.iter()) {
                let value = if total == 0.0 { value } else { value / total };
                let half = if value < 0.0 { -0.5 } else { 0.5 };
                *weight = (half + value * f64::from(1u32 << PRECISION_BITS)) as i32;
            }
            self.spans.push((first, end - first));
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
            .map(|(&(first, count), weights)| (first, &weights[..count]))
    }

    /// For instructions that multiply 16-bit numbers in pairs: every weight as `high * 2^LOW_BITS + low`, in groups
    /// of four weights `[high 0 1, high 2 3, low 0 1, low 2 3]`, two to a number, with zeros behind the last weight.
    ///
    /// The answer is the groups of one output pixel; all have equally many.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn split(&mut self) -> usize {
        let most = self.spans.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let groups = most.div_ceil(4);
        if self.halves.is_empty() {
            let pair = |high: i32, low: i32| (high & 0xffff) << 16 | (low & 0xffff);
            for (&(_, count), weights) in self.spans.iter().zip(self.weights.chunks_exact(self.stride)) {
                for group in 0..groups {
                    let weight = |at: usize| weights[..count].get(group * 4 + at).copied().unwrap_or(0);
                    let high = |at| weight(at) >> LOW_BITS;
                    let low = |at| weight(at) & ((1 << LOW_BITS) - 1);
                    self.halves.push([
                        pair(high(1), high(0)),
                        pair(high(3), high(2)),
                        pair(low(1), low(0)),
                        pair(low(3), low(2)),
                    ]);
                }
            }
        }
        groups
    }

    /// First source pixel and split weights of each output pixel, after [`Taps::split`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn iter_split(&self, groups: usize) -> impl Iterator<Item = (usize, &[[i32; 4]])> {
        self.spans.iter().map(|&(first, _)| first).zip(self.halves.chunks_exact(groups.max(1)))
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
pub(super) const LOW_BITS: i32 = 11;

/// The cubic convolution kernel, `a = -0.5`, written in Pillow's order of operations: the last bit depends on it.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        return ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    }
    if x < 2.0 {
        return (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    }
    0.0
}
