//! Training operations on a square picture: each a pure function of the picture and the numbers drawn for it.
//!
//! The geometry works on bytes `[side, side, 3]`, the colours on floats in 0..=1 of the same shape. The factors are
//! drawn as torchvision draws them; colours are not rounded to bytes between operations as they are there.

mod rand_augment;

pub use rand_augment::RandAugment;

use crate::rng::Rng;

/// What shows where the picture was moved away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// White.
    #[default]
    White,
    /// The nearest pixel of the picture.
    Edge,
    /// Grey, 128 of 255.
    Grey,
}

/// Half-widths of the factors: brightness, contrast and saturation are drawn from `[max(0, 1 - x), 1 + x)`, hue
/// from `[-x, x)` of the colour circle.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// 0 to 1.
    pub brightness: f64,
    /// 0 to 1.
    pub contrast: f64,
    /// 0 to 1.
    pub saturation: f64,
    /// 0 to 0.5.
    pub hue: f64,
}

/// Gaussian blur of some views.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blur {
    /// How often, 0 to 1.
    pub probability: f64,
    /// Smallest and largest standard deviation, in pixels of the finished picture.
    pub sigma: [f64; 2],
}

impl Default for Blur {
    fn default() -> Self {
        Self { probability: 0.0, sigma: [0.1, 2.0] }
    }
}

/// Mirrors left and right, in place.
pub fn flip(rgb: &mut [u8], side: usize) {
    for row in rgb.chunks_exact_mut(side * 3) {
        for left in 0..side / 2 {
            let right = side - 1 - left;
            for channel in 0..3 {
                row.swap(left * 3 + channel, right * 3 + channel);
            }
        }
    }
}

/// Turns by `degrees` (counter-clockwise) about the centre and moves by `shift` pixels (right, down); bilinear.
pub fn affine(rgb: &[u8], side: usize, degrees: f64, shift: [f64; 2], border: Border) -> Vec<u8> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let center = (side as f64 - 1.0) / 2.0;
    warp(rgb, side, border, |column, row| {
        let (x, y) = (column - center - shift[0], row - center - shift[1]);
        [cos * x - sin * y + center, sin * x + cos * y + center]
    })
}

/// Each pixel (column, row) shows the picture at `source`, the point (x, y) that it comes from; bilinear.
fn warp(rgb: &[u8], side: usize, border: Border, source: impl Fn(f64, f64) -> [f64; 2]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgb.len());
    for row in 0..side {
        for column in 0..side {
            let [x, y] = source(column as f64, row as f64);
            out.extend(bilinear(rgb, side, x, y, border));
        }
    }
    out
}

/// The picture at a point between its pixels.
fn bilinear(rgb: &[u8], side: usize, x: f64, y: f64, border: Border) -> [u8; 3] {
    let last = side as i64 - 1;
    let outside = if border == Border::Grey { 128.0 } else { 255.0 };
    let (left, top) = (x.floor(), y.floor());
    let (right_share, low_share) = (x - left, y - top);
    let mut sums = [0.5f64; 3];
    for (row, row_share) in [(top as i64, 1.0 - low_share), (top as i64 + 1, low_share)] {
        for (column, column_share) in [(left as i64, 1.0 - right_share), (left as i64 + 1, right_share)] {
            let inside = (0..=last).contains(&row) && (0..=last).contains(&column);
            let at = ((row.clamp(0, last) * side as i64 + column.clamp(0, last)) * 3) as usize;
            for (channel, sum) in sums.iter_mut().enumerate() {
                let value =
                    if inside || border == Border::Edge { f64::from(rgb[at + channel]) } else { outside };
                *sum += value * row_share * column_share;
            }
        }
    }
    sums.map(|sum| sum as u8)
}

/// Brightness, contrast, saturation and hue, each by a drawn factor, in a drawn order.
pub fn color_jitter(values: &mut [f32], config: &ColorJitter, rng: &mut Rng) {
    let mut operations = [0, 1, 2, 3];
    rng.shuffle(&mut operations);
    let mut factor = |width: f64| rng.uniform_in((1.0 - width).max(0.0), 1.0 + width) as f32;
    let (brightness, contrast, saturation) =
        (factor(config.brightness), factor(config.contrast), factor(config.saturation));
    let hue = rng.uniform_in(-config.hue, config.hue) as f32;
    for operation in operations {
        match operation {
            0 if config.brightness > 0.0 => blend(values, brightness, |_| 0.0),
            1 if config.contrast > 0.0 => {
                let mean = values.chunks_exact(3).map(luma).sum::<f32>() / (values.len() / 3) as f32;
                blend(values, contrast, |_| mean);
            }
            2 if config.saturation > 0.0 => blend(values, saturation, luma),
            3 if config.hue > 0.0 => values.chunks_exact_mut(3).for_each(|pixel| turn_hue(pixel, hue)),
            _ => {}
        }
    }
}

/// Moves every pixel away from (`factor` > 1) or towards `other`, and clips.
fn blend(values: &mut [f32], factor: f32, other: impl Fn(&[f32]) -> f32) {
    for pixel in values.chunks_exact_mut(3) {
        let other = other(pixel);
        for value in pixel {
            *value = (factor * *value + (1.0 - factor) * other).clamp(0.0, 1.0);
        }
    }
}

/// Brightness as the eye sees it, with torchvision's weights (ITU-R 601).
fn luma(pixel: &[f32]) -> f32 {
    0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

/// Turns the hue by `turn` of a full circle; value and saturation stay (HSV).
fn turn_hue(pixel: &mut [f32], turn: f32) {
    let (red, green, blue) = (pixel[0], pixel[1], pixel[2]);
    let high = red.max(green).max(blue);
    let range = high - red.min(green).min(blue);
    if range == 0.0 {
        return;
    }
    let sextant = if high == red {
        (green - blue) / range
    } else if high == green {
        2.0 + (blue - red) / range
    } else {
        4.0 + (red - green) / range
    };
    let hue = sextant + turn * 6.0;
    for (value, offset) in pixel.iter_mut().zip([5.0, 3.0, 1.0]) {
        let distance = (offset + hue).rem_euclid(6.0);
        *value = high - range * distance.min(4.0 - distance).clamp(0.0, 1.0);
    }
}

/// All three channels become the brightness.
pub fn grayscale(values: &mut [f32]) {
    for pixel in values.chunks_exact_mut(3) {
        let grey = luma(pixel);
        pixel.fill(grey);
    }
}

/// Gaussian blur, rows then columns, weights cut at three standard deviations, edges repeated.
pub fn blur(values: &mut Vec<f32>, side: usize, sigma: f64) {
    let radius = (3.0 * sigma).ceil() as i64;
    let mut weights: Vec<f32> =
        (-radius..=radius).map(|at| (-0.5 * (at as f64 / sigma).powi(2)).exp() as f32).collect();
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    for (step, line) in [(3, side * 3), (side * 3, 3)] {
        let mut out = vec![0.0; values.len()];
        for first in (0..side).map(|number| number * line) {
            for place in 0..side {
                for (offset, weight) in (-radius..=radius).zip(&weights) {
                    let source = (place as i64 + offset).clamp(0, side as i64 - 1) as usize;
                    for channel in 0..3 {
                        out[first + place * step + channel] +=
                            weight * values[first + source * step + channel];
                    }
                }
            }
        }
        *values = out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn picture(side: usize) -> Vec<u8> {
        (0..side * side * 3).map(|at| (at * 31 % 256) as u8).collect()
    }

    #[test]
    fn two_flips_and_a_full_turn_change_nothing() {
        for side in [7, 8] {
            let original = picture(side);
            let mut rgb = original.clone();
            flip(&mut rgb, side);
            assert_eq!(rgb[..3], original[(side - 1) * 3..side * 3]);
            flip(&mut rgb, side);
            assert_eq!(rgb, original);
            assert_eq!(affine(&rgb, side, 360.0, [0.0, 0.0], Border::Edge), original);
        }
    }

    #[test]
    fn a_quarter_turn_is_counter_clockwise_and_a_shift_goes_right_and_down() {
        let side = 9;
        let rgb = picture(side);
        let at = |rgb: &[u8], row: usize, column: usize| rgb[(row * side + column) * 3];
        let turned = affine(&rgb, side, 90.0, [0.0, 0.0], Border::White);
        // The right end of the middle row comes to the top.
        assert_eq!(at(&turned, 0, 4), at(&rgb, 4, 8));
        let moved = affine(&rgb, side, 0.0, [2.0, 1.0], Border::White);
        assert_eq!(at(&moved, 4, 5), at(&rgb, 3, 3));
        assert_eq!(at(&moved, 0, 0), 255);
    }

    #[test]
    fn hue_turns_through_the_colours_and_back() {
        let mut pixel = [1.0, 0.0, 0.0];
        turn_hue(&mut pixel, 1.0 / 3.0);
        assert!(
            pixel.iter().zip([0.0, 1.0, 0.0]).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5),
            "{pixel:?}"
        );
        let mut pixel = [0.2, 0.7, 0.4];
        turn_hue(&mut pixel, 0.3);
        turn_hue(&mut pixel, -0.3);
        assert!(
            pixel.iter().zip([0.2, 0.7, 0.4]).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5),
            "{pixel:?}"
        );
    }

    #[test]
    fn colours_stay_in_range_and_flat_pictures_stay_flat() {
        let config = ColorJitter { brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.4 };
        for sample in 0..50 {
            let mut values: Vec<f32> = picture(6).iter().map(|&value| f32::from(value) / 255.0).collect();
            color_jitter(&mut values, &config, &mut Rng::new(1, Stream::ColorJitter, &[sample]));
            assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
            blur(&mut values, 6, 1.5);
            assert!(values.iter().all(|value| (-1e-6..=1.00001).contains(value)));
        }
        let mut flat = vec![0.5f32; 5 * 5 * 3];
        blur(&mut flat, 5, 2.0);
        grayscale(&mut flat);
        assert!(flat.iter().all(|value| (value - 0.5).abs() < 1e-3));
    }
}
