//! Wide registers, by which a few pictures' worth of arithmetic is done at once.
//!
//! The `pulp` crate gives a token that proves what the processor can do, so all of this is safe code. Work that is given to
//! [`Wide::vectorize`] is compiled for the registers as far as it is inlined; a closure would not be, so loops are written
//! out.

mod avx2;
mod avx512;

use std::arch::x86_64::{__m256i, __m512i};

use pulp::NullaryFnOnce;

pub(crate) use avx512::Avx512;
pub(crate) use pulp::x86::V3 as Avx2;

/// Bytes of a lane: four pixels, and four bytes that belong to others.
pub(crate) const LANE: usize = 16;
/// Lanes of the widest register.
pub(crate) const MOST_LANES: usize = 4;
/// Registers whose numbers are weighted together: each weight is fetched once for all of them.
pub(crate) const TOGETHER: usize = 4;

/// Pairs of numbers of 16 bits.
pub(crate) type Column<W> = [<W as Wide>::Register; TOGETHER];

/// Proof that the processor has registers of some width, and what they can do. Closed: 256 and 512 bits.
pub(crate) trait Wide: Copy {
    /// Whole numbers of 8, 16 or 32 bits.
    type Register: Copy;
    /// As many numbers of 32 bits with a point.
    type Floats: Copy;
    /// Lanes of 128 bits in a register.
    const LANES: usize;

    /// A register of the first so many lanes.
    fn gather(self, lanes: [[u8; LANE]; MOST_LANES]) -> Self::Register;
    /// A register full of bytes from `at` on.
    fn load(self, row: &[u8], at: usize) -> Self::Register;
    /// The same 32 bits everywhere.
    fn splat(self, bits: i32) -> Self::Register;
    /// In each lane bytes to 16-bit numbers, each channel's pair side by side: of the first two pixels, or of the next two.
    fn channels(self, pixels: Self::Register, next: bool) -> Self::Register;
    /// In each lane the bytes of both, in turns: of their lower halves, or of the upper ones.
    fn interleave(self, one: Self::Register, two: Self::Register, upper: bool) -> Self::Register;
    /// `sum + a0 * b0 + a1 * b1` in 32 bits, of pairs of 16-bit numbers.
    fn add_products(self, sum: Self::Register, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The sum of both parts of a weighted sum, without its fractional bits.
    fn whole(self, high: Self::Register, low: Self::Register) -> Self::Register;
    /// In each lane four times four numbers, clipped to bytes.
    fn pack(self, numbers: [Self::Register; 4]) -> Self::Register;
    /// In each lane four pixels without the fourth byte of each.
    fn rgb(self, pixels: Self::Register) -> Self::Register;
    /// The register as bytes, lane by lane.
    fn lanes(self, register: Self::Register) -> impl AsRef<[[u8; LANE]]>;

    /// `a + b` of 16-bit numbers.
    fn add_words(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// `a - b` of 16-bit numbers.
    fn subtract_words(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The upper 16 bits of `a * b` of 16-bit numbers.
    fn upper_products(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// 16-bit numbers halved, rounded down.
    fn halves(self, words: Self::Register) -> Self::Register;
    /// 16-bit numbers divided by 16, rounded down.
    fn sixteenths(self, words: Self::Register) -> Self::Register;
    /// As [`Wide::interleave`], of 16-bit numbers.
    fn interleave_words(self, one: Self::Register, two: Self::Register, upper: bool) -> Self::Register;
    /// The upper 16 bits of 32-bit numbers; in each lane two times four of them.
    fn upper_words(self, one: Self::Register, two: Self::Register) -> Self::Register;
    /// In each lane two times eight 16-bit numbers, clipped to bytes.
    fn pack_words(self, one: Self::Register, two: Self::Register) -> Self::Register;

    /// One channel of each lane's four pixels as numbers, the last pixel first if `mirrored`.
    fn channel(self, pixels: Self::Register, channel: usize, mirrored: bool) -> Self::Floats;
    /// The same number everywhere.
    fn splat_float(self, value: f32) -> Self::Floats;
    /// `a * b`.
    fn times(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a - b`.
    fn minus(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn times_plus(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The numbers in their order.
    fn values(self, floats: Self::Floats) -> impl AsRef<[f32]>;

    /// The room for these registers.
    fn columns(columns: &mut Columns) -> &mut Vec<Column<Self>>;
    /// Runs `work`, which is to be inlined, compiled for these registers.
    fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output;
}

/// Room for columns that is used again.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    avx2: Vec<[__m256i; TOGETHER]>,
    avx512: Vec<[__m512i; TOGETHER]>,
}

/// For [`Wide::channels`], a lane's bytes: those of the pair of pixels that begins at byte `first`. 0x80 gives zero.
const fn pair_of_pixels(first: u8) -> [u8; LANE] {
    let mut bytes = [0x80; LANE];
    let mut at = 0;
    while at < 6 {
        // Even places are the first pixel, odd ones the second.
        bytes[at * 2] = first + (at / 2) as u8 + (at % 2) as u8 * 3;
        at += 1;
    }
    bytes
}

/// For [`Wide::channel`]: that channel of four pixels, each with three zeros behind it.
const fn one_channel(channel: u8, mirrored: bool) -> [u8; LANE] {
    let mut bytes = [0x80; LANE];
    let mut at = 0;
    while at < 4 {
        let pixel = if mirrored { 3 - at } else { at };
        bytes[at * 4] = pixel as u8 * 3 + channel;
        at += 1;
    }
    bytes
}

const CHANNELS: [[[u8; LANE]; 3]; 2] = [
    [one_channel(0, false), one_channel(1, false), one_channel(2, false)],
    [one_channel(0, true), one_channel(1, true), one_channel(2, true)],
];

/// For [`Wide::rgb`].
const THREE_OF_FOUR: [u8; LANE] = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0x80, 0x80, 0x80, 0x80];

/// The `N` bytes that begin at `at`, which are there.
#[inline(always)]
pub(crate) fn bytes<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&row[at..at + N]);
    bytes
}
