//! Bicubic resampling, bit for bit Pillow 13's.
//!
//! Two passes with 8-bit pixels between them, so their order shows in the last bits; see [`vertical_first`]. A pass
//! is a table of taps per output pixel: the cubic convolution kernel with `a = -0.5` (Keys 1981), widened by the
//! scale when shrinking (that is the antialiasing), normalised in f64 and rounded to 22-bit fixed point. Sums start
//! at one half and are clipped to 0..=255. A crop is cut first and then resampled: no tap reads outside it, as in
//! torchvision.

/// Fractional bits of a tap: 32 bits less 8 for the pixel and 2 for the kernel's overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// The kernel is zero from here on, in units of the (widened) pixel.
const SUPPORT: f64 = 2.0;

/// A rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Resamples `crop` of `rgb` (`[rows, row_width, 3]`, u8) to `[out_height, out_width, 3]`.
///
/// `crop` lies inside the picture and neither it nor the output is empty; a caller that breaks this panics.
pub fn bicubic(rgb: &[u8], row_width: usize, crop: Crop, out_width: usize, out_height: usize) -> Vec<u8> {
    let source_row = |row: usize| {
        let start = ((crop.top + row) * row_width + crop.left) * 3;
        &rgb[start..start + crop.width * 3]
    };
    let vertical = Taps::new(crop.height, out_height);
    if vertical_first(crop, out_width, out_height) {
        let cut: Vec<u8> = (0..crop.height).flat_map(source_row).copied().collect();
        let middle = vertical_pass(&cut, crop.width * 3, 0, &vertical);
        return horizontal_passes(middle.chunks_exact(crop.width * 3), crop.width, out_width);
    }
    // The taps of an equal size would be 1 at the pixel itself: Pillow skips such a pass, and so do we.
    let rows =
        if crop.height == out_height { 0..crop.height } else { vertical.first_used()..vertical.last_used() };
    let middle = horizontal_passes(rows.clone().map(source_row), crop.width, out_width);
    if crop.height == out_height {
        return middle;
    }
    vertical_pass(&middle, out_width * 3, rows.start, &vertical)
}

/// Whether the height is shrunk so much more than the width that Pillow 13 begins with it
/// (python-pillow/Pillow pull request 9549; the rule was read off 491 pictures of random sizes, all of which it
/// explains). Older versions, LAVIS's among them, always begin with the width.
fn vertical_first(crop: Crop, out_width: usize, out_height: usize) -> bool {
    let (height, width) = (crop.height as i64, crop.width as i64);
    let (height_lost, width_lost) = (height - out_height as i64, width - out_width as i64);
    height_lost > 0 && height_lost > 2 * width_lost
}

/// Each row resampled from `width` to `out_width` pixels; copied when they are equal.
fn horizontal_passes<'a>(rows: impl Iterator<Item = &'a [u8]>, width: usize, out_width: usize) -> Vec<u8> {
    if width == out_width {
        return rows.flatten().copied().collect();
    }
    let taps = Taps::new(width, out_width);
    let mut out = Vec::new();
    for row in rows {
        let start = out.len();
        out.resize(start + out_width * 3, 0);
        horizontal_pass(row, &taps, &mut out[start..]);
    }
    out
}

/// One row: each output pixel is a weighted sum of its neighbours in the row.
fn horizontal_pass(row: &[u8], taps: &Taps, out: &mut [u8]) {
    for (pixel, (first, weights)) in out.chunks_exact_mut(3).zip(taps.iter()) {
        let mut sums = [1i32 << (PRECISION_BITS - 1); 3];
        for (source, &weight) in row[first * 3..].chunks_exact(3).zip(weights) {
            for channel in 0..3 {
                sums[channel] += i32::from(source[channel]) * weight;
            }
        }
        for channel in 0..3 {
            pixel[channel] = clip(sums[channel]);
        }
    }
}

/// All rows: each output row is a weighted sum of whole rows, which the compiler turns into vector code.
fn vertical_pass(middle: &[u8], row_bytes: usize, first_row: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(taps.spans.len() * row_bytes);
    let mut sums = vec![0i32; row_bytes];
    for (first, weights) in taps.iter() {
        sums.fill(1 << (PRECISION_BITS - 1));
        for (row, &weight) in middle[(first - first_row) * row_bytes..].chunks_exact(row_bytes).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| clip(sum)));
    }
    out
}

/// Drops the fractional bits (rounding down; the sum started at one half) and clips to a byte.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// For each output pixel the first source pixel it reads and the fixed-point weights from there on.
struct Taps {
    /// (first source pixel, number of weights) per output pixel.
    spans: Vec<(usize, usize)>,
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(in_size: usize, out_size: usize) -> Self {
        let scale = in_size as f64 / out_size as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps =
            Self { spans: Vec::with_capacity(out_size), weights: vec![0; out_size * stride], stride };
        let mut exact = Vec::with_capacity(stride);
        for (pixel, weights) in taps.weights.chunks_exact_mut(stride).enumerate() {
            let center = (pixel as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5) as usize).min(in_size);
            let inverse = 1.0 / filter_scale;
            exact.clear();
            exact.extend((first..end).map(|at| cubic((at as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            for (weight, &value) in weights.iter_mut().zip(&exact) {
                let value = if total == 0.0 { value } else { value / total };
                let half = if value < 0.0 { -0.5 } else { 0.5 };
                *weight = (half + value * f64::from(1u32 << PRECISION_BITS)) as i32;
            }
            taps.spans.push((first, end - first));
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride))
            .map(|(&(first, count), weights)| (first, &weights[..count]))
    }

    fn first_used(&self) -> usize {
        self.spans.first().map_or(0, |&(first, _)| first)
    }

    fn last_used(&self) -> usize {
        self.spans.last().map_or(0, |&(first, count)| first + count)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_at_any_size() {
        for (width, height) in [(1, 1), (3, 500), (500, 3), (65_500, 1)] {
            let rgb = [7u8, 130, 255].repeat(width * height);
            let crop = Crop { top: 0, left: 0, height, width };
            let out = bicubic(&rgb, width, crop, 16, 16);
            assert_eq!(out, [7u8, 130, 255].repeat(16 * 16), "{width}x{height}");
        }
    }

    #[test]
    fn no_tap_reads_outside_the_crop() {
        // The crop is grey, everything around it white.
        let mut rgb = vec![255u8; 20 * 20 * 3];
        for row in 5..15 {
            rgb[(row * 20 + 5) * 3..(row * 20 + 15) * 3].fill(100);
        }
        let crop = Crop { top: 5, left: 5, height: 10, width: 10 };
        assert!(bicubic(&rgb, 20, crop, 7, 23).iter().all(|&value| value == 100));
    }

    #[test]
    fn a_tall_picture_begins_with_its_height() {
        let crop = |height, width| Crop { top: 0, left: 0, height, width };
        // Sizes on both sides of the rule, as Pillow 13 decides them.
        assert!(vertical_first(crop(140, 110), 84, 84) && vertical_first(crop(92, 82), 81, 81));
        assert!(vertical_first(crop(27, 35), 45, 6));
        assert!(!vertical_first(crop(42, 49), 39, 22) && !vertical_first(crop(31, 31), 75, 75));
        assert!(!vertical_first(crop(92, 16), 108, 108));
    }

    #[test]
    fn same_size_is_a_copy() {
        let rgb: Vec<u8> = (0..4 * 5 * 3).map(|value| value as u8).collect();
        assert_eq!(bicubic(&rgb, 4, Crop { top: 0, left: 0, height: 5, width: 4 }, 4, 5), rgb);
    }
}
