//! RandAugment (Cubuk and others 2019) as BLIP's fine-tuning has it: LAVIS's `blip_image_train`.
//!
//! The list, the strengths and the grey border are LAVIS's. Two things differ in the last bit: OpenCV turns and shears
//! with coefficients of 5 bits, we with floats; and where its sharpened values leave 0..=255 they wrap, ours are
//! clipped.

use super::{Border, warp};
use crate::rng::Rng;

/// How many operations, and how strong.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// Operations drawn for a view, with replacement; 0 (the default) leaves views alone. LAVIS: 2.
    pub operations: usize,
    /// Strength, 0 to 10. LAVIS: 5, with which brightness and sharpness stay as they are.
    pub magnitude: f64,
    /// How often a drawn operation is applied. LAVIS: 0.5.
    pub probability: f64,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { operations: 0, magnitude: 5.0, probability: 0.5 }
    }
}

/// The operations of BLIP's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Identity,
    AutoContrast,
    Brightness,
    Sharpness,
    Equalize,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
}

const OPERATIONS: [Operation; 10] = [
    Operation::Identity,
    Operation::AutoContrast,
    Operation::Brightness,
    Operation::Sharpness,
    Operation::Equalize,
    Operation::ShearX,
    Operation::ShearY,
    Operation::TranslateX,
    Operation::TranslateY,
    Operation::Rotate,
];

impl RandAugment {
    /// Whether this is the default, which does nothing.
    pub(crate) fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// Draws and applies the operations, in place; `rgb` is `[side, side, 3]`.
    pub(crate) fn apply(&self, rgb: &mut Vec<u8>, side: usize, rng: &mut Rng) {
        for _ in 0..self.operations {
            let operation = OPERATIONS[rng.below(OPERATIONS.len() as u64) as usize];
            // Both are drawn whatever the operation is, so that no draw moves another.
            let applied = rng.chance(self.probability);
            let sign = if rng.chance(0.5) { -1.0 } else { 1.0 };
            if applied {
                operation.apply(rgb, side, self.magnitude / 10.0, sign);
            }
        }
    }
}

impl Operation {
    /// With a strength of 0 to 1, and a direction of 1 or -1 where there is one.
    fn apply(self, rgb: &mut Vec<u8>, side: usize, strength: f64, sign: f64) {
        let factor = strength * 1.8 + 0.1;
        let shear = sign * strength * 0.3;
        let pixels = sign * strength * 10.0;
        let mut moved = |source: &dyn Fn(f64, f64) -> [f64; 2]| *rgb = warp(rgb, side, Border::Grey, source);
        match self {
            Self::Identity => {}
            Self::ShearX => moved(&|x, y| [x - shear * y, y]),
            Self::ShearY => moved(&|x, y| [x, y - shear * x]),
            Self::TranslateX => moved(&|x, y| [x - pixels, y]),
            Self::TranslateY => moved(&|x, y| [x, y - pixels]),
            Self::Rotate => {
                let (sin, cos) = (sign * strength * 30.0).to_radians().sin_cos();
                // OpenCV's centre is half the side, half a pixel off the true one.
                let center = side as f64 / 2.0;
                moved(&|x, y| {
                    let (x, y) = (x - center, y - center);
                    [cos * x - sin * y + center, sin * x + cos * y + center]
                });
            }
            Self::Brightness => {
                for value in rgb {
                    *value = (f64::from(*value) * factor).min(255.0) as u8;
                }
            }
            Self::Sharpness => sharpen(rgb, side, factor),
            Self::AutoContrast => through_tables(rgb, auto_contrast),
            Self::Equalize => through_tables(rgb, equalize),
        }
    }
}

/// Each channel's bytes are looked up in the table that is made from their histogram.
fn through_tables(rgb: &mut [u8], table: impl Fn(&[usize; 256]) -> [u8; 256]) {
    for channel in 0..3 {
        let mut histogram = [0; 256];
        rgb.iter().skip(channel).step_by(3).for_each(|&value| histogram[usize::from(value)] += 1);
        let table = table(&histogram);
        rgb.iter_mut().skip(channel).step_by(3).for_each(|value| *value = table[usize::from(*value)]);
    }
}

/// The darkest value becomes 0, the lightest 255.
fn auto_contrast(histogram: &[usize; 256]) -> [u8; 256] {
    let used = |&value: &usize| histogram[value] > 0;
    let low = (0..256).find(used).unwrap_or(0);
    let high = (0..256).rfind(used).unwrap_or(255);
    std::array::from_fn(|value| {
        if high <= low {
            return value as u8;
        }
        let scale = 255.0 / (high - low) as f64;
        (value as f64 * scale - low as f64 * scale).clamp(0.0, 255.0) as u8
    })
}

/// Pillow's equalisation: as many pixels of each value as can be, the order of values kept.
fn equalize(histogram: &[usize; 256]) -> [u8; 256] {
    let pixels: usize = histogram.iter().sum();
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    let step = (pixels - last) / 255;
    let mut below = step / 2;
    std::array::from_fn(|value| {
        if step == 0 {
            return value as u8;
        }
        let level = (below / step).min(255) as u8;
        below += histogram[value];
        level
    })
}

/// Away from (`factor` above 1) or towards a smoothed picture, whose weights are 5 in the middle and 1 around it; the
/// outermost pixels stay.
fn sharpen(rgb: &mut [u8], side: usize, factor: f64) {
    let original = rgb.to_vec();
    for row in 1..side.saturating_sub(1) {
        for at in (row * side + 1) * 3..(row * side + side - 1) * 3 {
            let line = |at: usize| [at - 3, at, at + 3].map(|at| u32::from(original[at])).iter().sum::<u32>();
            let around = line(at - side * 3) + line(at) + line(at + side * 3);
            // OpenCV rounds the smoothed value to a byte.
            let smooth = (f64::from(around + 4 * u32::from(original[at])) / 13.0).round();
            rgb[at] = (smooth + factor * (f64::from(original[at]) - smooth)).clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn picture(side: usize) -> Vec<u8> {
        (0..side * side * 3).map(|at| (at * 31 % 200 + 20) as u8).collect()
    }

    #[test]
    fn at_half_strength_brightness_and_sharpness_change_nothing() {
        for operation in [Operation::Identity, Operation::Brightness, Operation::Sharpness] {
            let mut rgb = picture(12);
            operation.apply(&mut rgb, 12, 0.5, 1.0);
            assert_eq!(rgb, picture(12), "{operation:?}");
        }
        let mut rgb = picture(12);
        Operation::Brightness.apply(&mut rgb, 12, 1.0, 1.0);
        assert_eq!(rgb[0], (20.0 * 1.9) as u8);
        Operation::Sharpness.apply(&mut rgb, 12, 1.0, 1.0);
        assert_ne!(rgb[13 * 3..14 * 3], picture(12)[13 * 3..14 * 3]);
    }

    #[test]
    fn contrast_reaches_both_ends_and_a_flat_channel_stays() {
        let mut rgb = [[10u8, 9, 50], [60, 9, 51], [110, 9, 52], [110, 9, 53]].concat();
        through_tables(&mut rgb, auto_contrast);
        assert_eq!(rgb, [[0u8, 9, 0], [127, 9, 85], [255, 9, 170], [255, 9, 255]].concat());
    }

    #[test]
    fn equalising_spreads_the_values() {
        let mut histogram = [0; 256];
        (histogram[100], histogram[101], histogram[102]) = (255, 255, 100);
        let table = equalize(&histogram);
        // Pillow: step 2, so (1 + 0) / 2, (1 + 255) / 2, (1 + 510) / 2.
        assert_eq!((table[100], table[101], table[102]), (0, 128, 255));
        assert_eq!(equalize(&[1; 256])[77], 77);
    }

    #[test]
    fn a_move_brings_in_grey_and_goes_both_ways() {
        let side = 20;
        let (mut right, mut left) = (picture(side), picture(side));
        Operation::TranslateX.apply(&mut right, side, 0.5, 1.0);
        Operation::TranslateX.apply(&mut left, side, 0.5, -1.0);
        assert_eq!(right[..15], [128; 15]);
        assert_eq!(right[15..60], picture(side)[..45]);
        assert_eq!(left[..45], picture(side)[15..60]);
    }

    #[test]
    fn every_operation_is_drawn_and_half_of_them_applied() {
        let config = RandAugment { operations: 1, magnitude: 9.0, probability: 0.5 };
        let changed = (0..600).filter(|&sample| {
            let mut rgb = picture(16);
            config.apply(&mut rgb, 16, &mut Rng::new(1, Stream::RandAugment, &[sample]));
            rgb != picture(16)
        });
        // Nine of ten operations change something, applied half of the time: 270 of 600, deviation 12.
        let changed = changed.count();
        assert!((220..320).contains(&changed), "{changed}");
    }
}
