//! Bytes become values `(x / 255 - mean) / std` in f32 as torch computes them, in planes.
//!
//! Dividing takes long and so does looking up. A quotient is got without either: times the reciprocal, kept in two parts,
//! rounded once. That is the same number but for rare ties of rounding, so all 768 values are compared when the transform is
//! made, and are looked up if one differs.

#[cfg(target_arch = "x86_64")]
use pulp::NullaryFnOnce;

use crate::kernel::Kernel;
#[cfg(target_arch = "x86_64")]
use crate::resize::BEHIND;
#[cfg(target_arch = "x86_64")]
use crate::wide::{LANE, MOST_LANES, Wide, bytes};

/// How bytes become values.
#[derive(Debug, Clone)]
pub(super) struct Normalize {
    /// The value of each byte, per channel.
    lookup: Box<[[f32; 256]; 3]>,
    /// The same in a few operations, where they give the same.
    #[cfg(target_arch = "x86_64")]
    steps: Option<[Steps; 3]>,
}

/// The operations of one channel.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Steps {
    full: Reciprocal,
    mean: f32,
    deviation: Reciprocal,
}

/// One divided by something, as a sum of two numbers.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Reciprocal {
    high: f32,
    low: f32,
}

#[cfg(target_arch = "x86_64")]
impl Reciprocal {
    fn of(number: f32) -> Self {
        let exact = 1.0 / f64::from(number);
        let high = exact as f32;
        Self { high, low: (exact - f64::from(high)) as f32 }
    }

    fn times(self, number: f32) -> f32 {
        number.mul_add(self.high, number * self.low)
    }
}

#[cfg(target_arch = "x86_64")]
impl Steps {
    /// `None` if a byte's value would be another than in `table`.
    fn of(mean: f32, deviation: f32, table: &[f32; 256]) -> Option<Self> {
        let steps = Self { full: Reciprocal::of(255.0), mean, deviation: Reciprocal::of(deviation) };
        let value = |byte: usize| steps.deviation.times(steps.full.times(byte as f32) - mean);
        table
            .iter()
            .enumerate()
            .all(|(byte, right)| value(byte).to_bits() == right.to_bits())
            .then_some(steps)
    }
}

impl Normalize {
    /// For these means and standard deviations of the channels.
    pub(super) fn new(mean: [f32; 3], deviation: [f32; 3]) -> Self {
        let mut lookup = Box::new([[0.0; 256]; 3]);
        for (channel, table) in lookup.iter_mut().enumerate() {
            for (byte, value) in table.iter_mut().enumerate() {
                *value = (byte as f32 / 255.0 - mean[channel]) / deviation[channel];
            }
        }
        #[cfg(target_arch = "x86_64")]
        let steps = {
            let of = |channel: usize| Steps::of(mean[channel], deviation[channel], &lookup[channel]);
            of(0).zip(of(1)).zip(of(2)).map(|((red, green), blue)| [red, green, blue])
        };
        Self {
            lookup,
            #[cfg(target_arch = "x86_64")]
            steps,
        }
    }

    /// `rgb` `[rows, side, 3]` to `out` `[3, rows, side]`, left and right exchanged if `mirrored`.
    pub(super) fn planes(&self, kernel: Kernel, rgb: &[u8], side: usize, mirrored: bool, out: &mut [f32]) {
        for row in 0..rgb.len() / (side * 3) {
            self.row(kernel, &rgb[row * side * 3..], [row, side], mirrored, out);
        }
    }

    /// Row `[row, side]` of [`Normalize::planes`], with what stands behind it.
    pub(super) fn row(
        &self,
        kernel: Kernel,
        rgb: &[u8],
        [row, side]: [usize; 2],
        mirrored: bool,
        out: &mut [f32],
    ) {
        let mut out = channels(out).map(|plane| &mut plane[row * side..(row + 1) * side]);
        if !self.wide_row(kernel, rgb, side, mirrored, &mut out) {
            let pixels = rgb[..side * 3].chunks_exact(3);
            let value = |channel: usize, byte: u8| self.lookup[channel][usize::from(byte)];
            match mirrored {
                true => place(pixels.rev(), value, out),
                false => place(pixels, value, out),
            }
        }
    }

    /// The row by vector code; `false`, and nothing done, where that cannot be.
    #[cfg(target_arch = "x86_64")]
    fn wide_row(
        &self,
        kernel: Kernel,
        rgb: &[u8],
        side: usize,
        mirrored: bool,
        out: &mut [&mut [f32]; 3],
    ) -> bool {
        let Some(steps) = &self.steps else { return false };
        // A lane is loaded whole, so that a little of what follows the row is seen.
        let Some(row) = rgb.get(..side * 3 + BEHIND) else { return false };
        let out = out.each_mut().map(|plane| &mut **plane);
        match kernel {
            Kernel::Avx2(wide) if side >= pixels(wide) => {
                wide.vectorize(WideRow { wide, steps, row, mirrored, out });
            }
            Kernel::Avx512(wide) if side >= pixels(wide) => {
                wide.vectorize(WideRow { wide, steps, row, mirrored, out });
            }
            _ => return false,
        }
        true
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn wide_row(&self, _: Kernel, _: &[u8], _: usize, _: bool, _: &mut [&mut [f32]; 3]) -> bool {
        false
    }
}

/// The three planes of `[3, ..]`.
#[inline]
pub(super) fn channels(values: &mut [f32]) -> [&mut [f32]; 3] {
    let plane = values.len() / 3;
    let (red, rest) = values.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    [red, green, blue]
}

/// Sets the values of `pixels` in three planes.
pub(super) fn place<'a, T: Copy + 'a>(
    pixels: impl Iterator<Item = &'a [T]>,
    value: impl Fn(usize, T) -> f32,
    [red, green, blue]: [&mut [f32]; 3],
) {
    for (pixel, ((red, green), blue)) in pixels.zip(red.iter_mut().zip(green).zip(blue)) {
        *red = value(0, pixel[0]);
        *green = value(1, pixel[1]);
        *blue = value(2, pixel[2]);
    }
}

/// Pixels of a lane.
#[cfg(target_arch = "x86_64")]
const PIXELS: usize = 4;

/// Pixels of a register.
#[cfg(target_arch = "x86_64")]
fn pixels<W: Wide>(_: W) -> usize {
    W::LANES * PIXELS
}

#[cfg(target_arch = "x86_64")]
struct WideRow<'a, W: Wide> {
    wide: W,
    steps: &'a [Steps; 3],
    /// With [`BEHIND`] bytes behind it.
    row: &'a [u8],
    mirrored: bool,
    out: [&'a mut [f32]; 3],
}

#[cfg(target_arch = "x86_64")]
impl<W: Wide> NullaryFnOnce for WideRow<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, steps, row, mirrored, out: [red, green, blue] } = self;
        let channels =
            [Channel::new(wide, steps[0]), Channel::new(wide, steps[1]), Channel::new(wide, steps[2])];
        let (block, side) = (W::LANES * PIXELS, red.len());
        let mut reached = 0;
        while reached < side {
            // The last block begins inside the one before it.
            let at = reached.min(side - block);
            let first = if mirrored { side - block - at } else { at };
            let mut lanes = [[0; LANE]; MOST_LANES];
            for (number, lane) in lanes.iter_mut().enumerate().take(W::LANES) {
                let number = if mirrored { W::LANES - 1 - number } else { number };
                *lane = bytes(row, (first + number * PIXELS) * 3);
            }
            let pixels = wide.gather(lanes);
            red[at..at + block].copy_from_slice(channels[0].values(pixels, 0, mirrored).as_ref());
            green[at..at + block].copy_from_slice(channels[1].values(pixels, 1, mirrored).as_ref());
            blue[at..at + block].copy_from_slice(channels[2].values(pixels, 2, mirrored).as_ref());
            reached += block;
        }
    }
}

/// [`Steps`] in registers.
#[cfg(target_arch = "x86_64")]
struct Channel<W: Wide> {
    wide: W,
    full: [W::Floats; 2],
    mean: W::Floats,
    deviation: [W::Floats; 2],
}

#[cfg(target_arch = "x86_64")]
impl<W: Wide> Channel<W> {
    #[inline(always)]
    fn new(wide: W, steps: Steps) -> Self {
        Self {
            wide,
            full: [wide.splat_float(steps.full.high), wide.splat_float(steps.full.low)],
            mean: wide.splat_float(steps.mean),
            deviation: [wide.splat_float(steps.deviation.high), wide.splat_float(steps.deviation.low)],
        }
    }

    #[inline(always)]
    fn values(&self, pixels: W::Register, channel: usize, mirrored: bool) -> impl AsRef<[f32]> {
        let Self { wide, full, mean, deviation } = self;
        let number = wide.channel(pixels, channel, mirrored);
        let number = wide.times_plus(number, full[0], wide.times(number, full[1]));
        let number = wide.minus(number, *mean);
        wide.values(wide.times_plus(number, deviation[0], wide.times(number, deviation[1])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, written out.
    fn plain(mean: [f32; 3], deviation: [f32; 3], rgb: &[u8], side: usize, mirrored: bool) -> Vec<u32> {
        let rows = rgb.len() / side / 3;
        let value = |channel: usize, row: usize, column: usize| {
            let column = if mirrored { side - 1 - column } else { column };
            let byte = rgb[(row * side + column) * 3 + channel];
            ((f32::from(byte) / 255.0 - mean[channel]) / deviation[channel]).to_bits()
        };
        let places = (0..3 * rows * side).map(|at| (at / (rows * side), at / side % rows, at % side));
        places.map(|(channel, row, column)| value(channel, row, column)).collect()
    }

    #[test]
    fn every_byte_becomes_its_value_to_the_bit_at_any_size_mirrored_or_not() {
        let usual = crate::transform::TransformConfig::default();
        let settings = [
            (usual.mean, usual.std),
            ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ([0.5; 3], [0.5; 3]),
            ([0.0; 3], [1.0; 3]),
            // Quotients that no step can reach: they are looked up.
            ([0.1; 3], [1e-38, 3e38, 1e-40]),
        ];
        for (mean, deviation) in settings {
            let normalize = Normalize::new(mean, deviation);
            for side in [1, 3, 7, 8, 9, 15, 16, 17, 24, 31, 33, 86] {
                // Each channel sees each byte.
                let rgb: Vec<u8> =
                    (0..side * 3 * 256usize.div_ceil(side)).map(|at| (at / 3 + at % 3 * 77) as u8).collect();
                for (kernel, mirrored) in Kernel::wide()
                    .into_iter()
                    .chain([Kernel::Scalar])
                    .flat_map(|kernel| [(kernel, false), (kernel, true)])
                {
                    let mut out = vec![f32::NAN; rgb.len()];
                    normalize.planes(kernel, &rgb, side, mirrored, &mut out);
                    let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
                    assert!(
                        bits == plain(mean, deviation, &rgb, side, mirrored),
                        "{kernel:?}, side {side}, mirrored: {mirrored}"
                    );
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_usual_means_are_not_looked_up() {
        let usual = crate::transform::TransformConfig::default();
        assert!(Normalize::new(usual.mean, usual.std).steps.is_some());
    }
}
