//! Bicubic resampling, bit for bit Pillow 13's.
//!
//! Two passes with 8-bit pixels between them, so their order shows in the last bits; see [`vertical_first`]. A pass
//! is a table of taps per output pixel: the cubic convolution kernel with `a = -0.5` (Keys 1981), widened by the
//! scale when shrinking (that is the antialiasing), normalised in f64 and rounded to 22-bit fixed point. Sums start
//! at one half and are clipped to 0..=255. A crop is cut first and then resampled: no tap reads outside it, as in
//! torchvision.
//!
//! The sums are whole numbers, so their order does not matter: on x86-64 with AVX-512 or AVX2, found out when the program
//! runs, vector code gives the same bytes as the scalar code.

#[cfg(target_arch = "x86_64")]
mod across;
#[cfg(target_arch = "x86_64")]
mod down;
mod taps;
#[cfg(target_arch = "x86_64")]
mod weighted;

use std::cell::RefCell;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use taps::LOW_BITS;
pub(crate) use taps::PRECISION_BITS;
use taps::Taps;

use crate::kernel::Kernel;

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
    let mut out = Vec::new();
    bicubic_into(rgb, row_width, crop, [out_width, out_height], &mut out);
    out
}

/// As [`bicubic`], to `[width, height]`, into a vector that is used again: what it held is gone.
pub fn bicubic_into(rgb: &[u8], row_width: usize, crop: Crop, size: [usize; 2], out: &mut Vec<u8>) {
    bicubic_rows(rgb, row_width, crop, size, out, &mut |_, _| {});
}

/// As [`bicubic_into`]; `finished` is called with each row's number and bytes, and [`BEHIND`] bytes without meaning behind
/// them, as early as may be. What it writes to memory then is under way while the next row is made.
pub(crate) fn bicubic_rows(
    rgb: &[u8],
    row_width: usize,
    crop: Crop,
    size: [usize; 2],
    out: &mut Vec<u8>,
    finished: &mut dyn FnMut(usize, &[u8]),
) {
    thread_local! {
        // Fresh pages for every picture would cost a tenth of the time.
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    let source = Rows::of(rgb, row_width, crop);
    SCRATCH.with_borrow_mut(|scratch| scratch.resample(Kernel::best(), (source, crop), size, out, finished));
}

/// Bytes behind a row that can be read.
pub(crate) const BEHIND: usize = 4;

/// Rows of pixels that lie `stride` bytes apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    bytes: &'a [u8],
    start: usize,
    stride: usize,
    /// Bytes of one row.
    length: usize,
}

impl<'a> Rows<'a> {
    fn of(rgb: &'a [u8], row_width: usize, crop: Crop) -> Self {
        let start = (crop.top * row_width + crop.left) * 3;
        Self { bytes: rgb, start, stride: row_width * 3, length: crop.width * 3 }
    }

    fn row(&self, number: usize) -> &'a [u8] {
        let start = self.start + number * self.stride;
        &self.bytes[start..start + self.length]
    }

    /// The row with what stands behind it, `length` bytes in all, where there is so much.
    #[cfg(target_arch = "x86_64")]
    fn reaching(&self, number: usize, length: usize) -> Option<&'a [u8]> {
        let start = self.start + number * self.stride;
        self.bytes.get(start..start + length)
    }
}

/// What a thread keeps from one picture to the next.
#[derive(Debug, Default)]
struct Scratch {
    middle: Vec<u8>,
    sums: Vec<i32>,
    horizontal: Taps,
    vertical: Taps,
    #[cfg(target_arch = "x86_64")]
    work: across::Workspace,
}

impl Scratch {
    fn resample(
        &mut self,
        kernel: Kernel,
        (source, crop): (Rows<'_>, Crop),
        [out_width, out_height]: [usize; 2],
        out: &mut Vec<u8>,
        finished: &mut dyn FnMut(usize, &[u8]),
    ) {
        self.horizontal.fill(kernel, crop.width, out_width);
        self.vertical.fill(kernel, crop.height, out_height);
        let mut middle = std::mem::take(&mut self.middle);
        let between = |middle, length| Rows { bytes: middle, start: 0, stride: length, length };
        if vertical_first(crop, out_width, out_height) {
            self.vertical_pass(kernel, source, 0, &mut middle, &mut |_, _| {});
            self.horizontal_passes(kernel, between(&middle, source.length), 0..out_height, out);
            all_finished(out, out_width * 3, finished);
        } else if crop.height == out_height {
            // The taps of an equal size would be 1 at the pixel itself: Pillow skips such a pass, and so do we.
            self.horizontal_passes(kernel, source, 0..crop.height, out);
            all_finished(out, out_width * 3, finished);
        } else {
            let rows = self.vertical.first_used()..self.vertical.last_used();
            self.horizontal_passes(kernel, source, rows.clone(), &mut middle);
            self.vertical_pass(kernel, between(&middle, out_width * 3), rows.start, out, finished);
        }
        self.middle = middle;
    }

    /// Each of `numbers` of the rows resampled in its width; copied when that stays.
    fn horizontal_passes(
        &mut self,
        kernel: Kernel,
        rows: Rows<'_>,
        numbers: Range<usize>,
        out: &mut Vec<u8>,
    ) {
        let taps = &mut self.horizontal;
        if taps.keeps_size() {
            out.clear();
            numbers.for_each(|number| out.extend_from_slice(rows.row(number)));
            return;
        }
        match kernel {
            Kernel::Scalar => {
                let length = taps.len() * 3;
                out.resize(numbers.len() * length, 0);
                for (number, out) in numbers.zip(out.chunks_exact_mut(length)) {
                    horizontal_pass(rows.row(number), taps, out);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(avx2) => {
                across::horizontal_passes(avx2, rows, numbers, taps.pairs(), &mut self.work, out);
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(avx512) => {
                across::horizontal_passes(avx512, rows, numbers, taps.pairs(), &mut self.work, out);
            }
        }
    }

    /// Each output row is a weighted sum of whole rows; `first_row` is the number of the first row that is there.
    fn vertical_pass(
        &mut self,
        kernel: Kernel,
        rows: Rows<'_>,
        first_row: usize,
        out: &mut Vec<u8>,
        finished: &mut dyn FnMut(usize, &[u8]),
    ) {
        let taps = &mut self.vertical;
        let wanted = taps.len() * rows.length;
        out.resize(wanted + BEHIND, 0);
        #[cfg(target_arch = "x86_64")]
        let (given, columns) = ((rows, first_row..taps.last_used()), &mut self.work.columns);
        let done = match kernel {
            Kernel::Scalar => false,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(avx2) => down::vertical_pass(avx2, given, taps.pairs(), columns, out, finished),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(avx512) => {
                down::vertical_pass(avx512, given, taps.pairs(), columns, out, finished)
            }
        };
        out.truncate(wanted);
        if !done {
            self.sums.resize(rows.length, 0);
            vertical_pass(rows, first_row, taps, &mut self.sums, out);
            all_finished(out, rows.length, finished);
        }
    }
}

fn all_finished(out: &mut Vec<u8>, length: usize, finished: &mut dyn FnMut(usize, &[u8])) {
    let wanted = out.len();
    out.resize(wanted + BEHIND, 0);
    for (number, start) in (0..wanted).step_by(length).enumerate() {
        finished(number, &out[start..start + length + BEHIND]);
    }
    out.truncate(wanted);
}

/// Whether the height is shrunk so much more than the width that Pillow 13 begins with it
/// (python-pillow/Pillow pull request 9549; the rule was read off 491 pictures of random sizes, all of which it
/// explains). Older versions, LAVIS's among them, always begin with the width.
fn vertical_first(crop: Crop, out_width: usize, out_height: usize) -> bool {
    let (height, width) = (crop.height as i64, crop.width as i64);
    let (height_lost, width_lost) = (height - out_height as i64, width - out_width as i64);
    height_lost > 0 && height_lost > 2 * width_lost
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

/// Whole rows at once.
fn vertical_pass(rows: Rows<'_>, first_row: usize, taps: &Taps, sums: &mut [i32], out: &mut [u8]) {
    for (out, (first, weights)) in out.chunks_exact_mut(rows.length).zip(taps.iter()) {
        sums.fill(1 << (PRECISION_BITS - 1));
        // Two rows for each time that the sums are loaded and stored.
        let mut number = first - first_row;
        let mut pairs = weights.chunks_exact(2);
        for pair in &mut pairs {
            let (one, two) = (rows.row(number), rows.row(number + 1));
            for ((sum, &one), &two) in sums.iter_mut().zip(one).zip(two) {
                *sum += i32::from(one) * pair[0] + i32::from(two) * pair[1];
            }
            number += 2;
        }
        for &weight in pairs.remainder() {
            for (sum, &value) in sums.iter_mut().zip(rows.row(number)) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = clip(sum);
        }
    }
}

/// Drops the fractional bits (rounding down; the sum started at one half) and clips to a byte.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

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

    proptest! {
        #[test]
        fn vector_code_gives_the_bytes_of_scalar_code(
            width in 1usize..260, height in 1usize..90, out_width in 1usize..90, out_height in 1usize..70,
            cut in 0usize..20, seed: u64,
        ) {
            let mut rng = crate::rng::Rng::new(seed, crate::rng::Stream::Crop, &[]);
            // Black and white, so that the kernel overshoots at both ends.
            let rgb: Vec<u8> = (0..width * height * 3).map(|_| [0, 255, rng.bits() as u8][rng.below(3) as usize]).collect();
            let (top, left) = (cut.min(height - 1), (cut / 2).min(width - 1));
            let crop = Crop { top, left, height: height - top, width: width - left };
            let resampled = |kernel| {
                let mut out = vec![9; 5];
                let source = Rows::of(&rgb, width, crop);
                let mut rows = Vec::new();
                let mut finished = |number, row: &[u8]| {
                    assert_eq!((number, row.len()), (rows.len() / out_width / 3, out_width * 3 + BEHIND));
                    rows.extend_from_slice(&row[..out_width * 3]);
                };
                Scratch::default().resample(kernel, (source, crop), [out_width, out_height], &mut out, &mut finished);
                assert_eq!(rows, out);
                out
            };
            let scalar = resampled(Kernel::Scalar);
            for kernel in Kernel::wide() {
                prop_assert_eq!(&resampled(kernel), &scalar, "{:?}", kernel);
            }
        }
    }
}
