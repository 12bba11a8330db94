//! Both passes with wide registers.
//!
//! `vpmaddwd` multiplies pairs of 16-bit numbers and adds each pair; a weight has 23 bits and so goes through it in two
//! parts, see [`Taps::split`]. In its width several rows of a picture go together, one in each lane of 128 bits, because
//! they share their weights; in its height a register holds neighbours of one row. The `pulp` crate gives a token that proves
//! what the processor can do, so all of this is safe code. Loops are written out: a closure would not be compiled for
//! the wide instructions.

use std::ops::Range;

use pulp::NullaryFnOnce;

use super::Rows;
use super::taps::{PRECISION_BITS, Taps};

/// Bytes of a lane: four pixels, and four bytes that no weight sees.
pub(super) const LANE: usize = 16;
/// Most rows that are resampled together.
const MOST_TOGETHER: usize = 8;

/// Proof that the processor has registers of some width, and what they can do. Closed: 256 and 512 bits.
pub(super) trait Wide: Copy {
    /// Whole numbers of 8, 16 or 32 bits.
    type Register: Copy;
    /// Lanes of 128 bits in a register.
    const LANES: usize;

    /// [`LANE`] bytes from `at` on of as many rows as there are lanes.
    fn gather(self, rows: &[&[u8]], at: usize) -> Self::Register;
    /// A register full of one row's bytes from `at` on.
    fn load(self, row: &[u8], at: usize) -> Self::Register;
    /// The same 32 bits everywhere.
    fn splat(self, bits: i32) -> Self::Register;
    /// In each lane bytes to 16-bit numbers, each channel's pair side by side: of the first two pixels, or of the next two.
    fn channels(self, pixels: Self::Register, next: bool) -> Self::Register;
    /// In each lane the bytes of both, in turns: of their lower halves, or of the upper ones.
    fn interleave(self, one: Self::Register, two: Self::Register, upper: bool) -> Self::Register;
    /// `sum + a0 * b0 + a1 * b1` in 32 bits, of pairs of 16-bit numbers.
    fn add_products(self, sum: Self::Register, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The sum of both parts, without its fractional bits.
    fn whole(self, high: Self::Register, low: Self::Register) -> Self::Register;
    /// In each lane four times four numbers, clipped to bytes.
    fn pack(self, numbers: [Self::Register; 4]) -> Self::Register;
    /// The register as bytes, lane by lane.
    fn lanes(self, register: Self::Register) -> impl AsRef<[[u8; LANE]]>;
    /// Runs `work`, which is to be inlined, compiled for these registers.
    fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output;
}

/// Sums of weighted 16-bit numbers, in two parts.
#[derive(Clone, Copy)]
struct Sums<W: Wide> {
    high: W::Register,
    low: W::Register,
}

impl<W: Wide> Sums<W> {
    #[inline(always)]
    fn new(wide: W) -> Self {
        Self { high: wide.splat(0), low: wide.splat(1 << (PRECISION_BITS - 1)) }
    }

    #[inline(always)]
    fn add(&mut self, wide: W, values: W::Register, high: W::Register, low: W::Register) {
        self.high = wide.add_products(self.high, values, high);
        self.low = wide.add_products(self.low, values, low);
    }

    #[inline(always)]
    fn whole(self, wide: W) -> W::Register {
        wide.whole(self.high, self.low)
    }
}

/// Each of `numbers` of the rows resampled in its width.
pub(super) fn horizontal_passes<W: Wide>(
    wide: W,
    rows: Rows<'_>,
    numbers: Range<usize>,
    taps: &mut Taps,
    padded: &mut Vec<u8>,
    out: &mut Vec<u8>,
) {
    let together = 2 * W::LANES;
    let groups = taps.split();
    let length = taps.len() * 3;
    // What a load may see behind a row has no weight, but it must be there.
    let reach = rows.length + groups * 4 * 3 + LANE;
    padded.resize(together * reach, 0);
    let wanted = numbers.len() * length;
    out.resize(wanted.next_multiple_of(together * length), 0);
    for (block, out) in out.chunks_exact_mut(together * length).enumerate() {
        let mut block_rows: [&[u8]; MOST_TOGETHER] = [&[]; MOST_TOGETHER];
        let places = block_rows.iter_mut().zip(padded.chunks_exact_mut(reach));
        for (place, (row, padded)) in places.enumerate() {
            // Behind the last row it is shown again; what is made of it is cut off.
            let number = (numbers.start + block * together + place).min(numbers.end - 1);
            *row = match rows.reaching(number, reach) {
                Some(row) => row,
                None => {
                    padded[..rows.length].copy_from_slice(rows.row(number));
                    padded
                }
            };
        }
        let (front, back) = block_rows[..together].split_at(W::LANES);
        wide.vectorize(RowsTogether { wide, front, back, taps, groups, out, length });
    }
    out.truncate(wanted);
}

/// Rows with room behind them, a lane each, and where they go.
struct RowsTogether<'a, W: Wide> {
    wide: W,
    front: &'a [&'a [u8]],
    back: &'a [&'a [u8]],
    taps: &'a Taps,
    groups: usize,
    out: &'a mut [u8],
    length: usize,
}

impl<W: Wide> NullaryFnOnce for RowsTogether<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, front, back, taps, groups, out, length } = self;
        let mut column = 0;
        for (first, weights) in taps.iter_split(groups) {
            let mut sums = [Sums::new(wide), Sums::new(wide)];
            for (group, weights) in weights.iter().enumerate() {
                let at = (first + group * 4) * 3;
                let [high, high_next, low, low_next] = *weights;
                let (high, low) = (wide.splat(high), wide.splat(low));
                let (high_next, low_next) = (wide.splat(high_next), wide.splat(low_next));
                let (one, two) = (wide.gather(front, at), wide.gather(back, at));
                sums[0].add(wide, wide.channels(one, false), high, low);
                sums[0].add(wide, wide.channels(one, true), high_next, low_next);
                sums[1].add(wide, wide.channels(two, false), high, low);
                sums[1].add(wide, wide.channels(two, true), high_next, low_next);
            }
            let (one, two) = (sums[0].whole(wide), sums[1].whole(wide));
            let lanes = wide.lanes(wide.pack([one, two, one, two]));
            for (lane, bytes) in lanes.as_ref().iter().enumerate() {
                let (row, other) = (lane * length + column, (W::LANES + lane) * length + column);
                // A pixel is three bytes; a fourth is written with it where the next pixel overwrites it.
                if column + 4 <= length {
                    out[row..row + 4].copy_from_slice(&bytes[..4]);
                    out[other..other + 4].copy_from_slice(&bytes[4..8]);
                } else {
                    out[row..row + 3].copy_from_slice(&bytes[..3]);
                    out[other..other + 3].copy_from_slice(&bytes[4..7]);
                }
            }
            column += 3;
        }
    }
}

/// Each output row as a weighted sum of whole rows; `first_row` is the number of the first row that is there. `false`, and
/// nothing done, for rows that do not fill a register.
pub(super) fn vertical_pass<W: Wide>(
    wide: W,
    rows: Rows<'_>,
    first_row: usize,
    taps: &mut Taps,
    out: &mut [u8],
) -> bool {
    if rows.length < W::LANES * LANE {
        return false;
    }
    let groups = taps.split();
    wide.vectorize(WholeRows { wide, rows, first_row, taps, groups, out });
    true
}

struct WholeRows<'a, W: Wide> {
    wide: W,
    rows: Rows<'a>,
    first_row: usize,
    taps: &'a Taps,
    groups: usize,
    out: &'a mut [u8],
}

impl<W: Wide> NullaryFnOnce for WholeRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, rows, first_row, taps, groups, out } = self;
        let block = W::LANES * LANE;
        let last = taps.last_used() - 1;
        for (out, (first, weights)) in out.chunks_exact_mut(rows.length).zip(taps.iter_split(groups)) {
            let mut reached = 0;
            while reached < rows.length {
                // The last block begins inside the one before it.
                let at = reached.min(rows.length - block);
                let mut sums = [Sums::new(wide); 4];
                for (group, weights) in weights.iter().enumerate() {
                    for half in 0..2 {
                        let number = first + group * 4 + half * 2;
                        // Rows behind the last one have no weight.
                        let one = rows.row(number.min(last) - first_row);
                        let two = rows.row((number + 1).min(last) - first_row);
                        let (one, two) = (wide.load(one, at), wide.load(two, at));
                        let (high, low) = (wide.splat(weights[half]), wide.splat(weights[2 + half]));
                        add_pair(wide, &mut sums, [one, two], high, low);
                    }
                }
                let numbers =
                    [sums[0].whole(wide), sums[1].whole(wide), sums[2].whole(wide), sums[3].whole(wide)];
                let lanes = wide.lanes(wide.pack(numbers));
                for (out, bytes) in out[at..at + block].chunks_exact_mut(LANE).zip(lanes.as_ref()) {
                    out.copy_from_slice(bytes);
                }
                reached += block;
            }
        }
    }
}

/// Adds a pair of rows: their bytes side by side, as 16-bit numbers, in the order in which packing brings them back.
#[inline(always)]
fn add_pair<W: Wide>(
    wide: W,
    sums: &mut [Sums<W>; 4],
    [one, two]: [W::Register; 2],
    high: W::Register,
    low: W::Register,
) {
    let nothing = wide.splat(0);
    let (lower, upper) = (wide.interleave(one, two, false), wide.interleave(one, two, true));
    sums[0].add(wide, wide.interleave(lower, nothing, false), high, low);
    sums[1].add(wide, wide.interleave(lower, nothing, true), high, low);
    sums[2].add(wide, wide.interleave(upper, nothing, false), high, low);
    sums[3].add(wide, wide.interleave(upper, nothing, true), high, low);
}

/// For [`Wide::channels`], a lane's bytes: those of the pair of pixels that begins at byte `first`. 0x80 gives zero.
pub(super) const fn pair_of_pixels(first: u8) -> [u8; LANE] {
    let mut bytes = [0x80; LANE];
    let mut at = 0;
    while at < 6 {
        // Even places are the first pixel, odd ones the second.
        bytes[at * 2] = first + (at / 2) as u8 + (at % 2) as u8 * 3;
        at += 1;
    }
    bytes
}

/// The `N` bytes that begin at `at`; zeros where there are fewer.
#[inline(always)]
pub(super) fn bytes<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    let Some((_, row)) = row.split_at_checked(at) else { return [0; N] };
    match row.first_chunk::<N>() {
        Some(bytes) => *bytes,
        None => [0; N],
    }
}
