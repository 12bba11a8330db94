//! The horizontal pass with AVX2.
//!
//! Four rows go together, two to a register, because they share their weights. `vpmaddwd` multiplies pairs of 16-bit
//! numbers and adds each pair; a weight has 23 bits and so goes through it in two parts, see [`Taps::split`]. The
//! `pulp` crate gives a token that proves what the processor can do, so all of this is safe code.

use std::arch::x86_64::{__m128i, __m256i};
use std::ops::Range;

use pulp::bytemuck::cast;

use super::Rows;
use super::taps::{LOW_BITS, PRECISION_BITS, Taps};

/// Rows that are resampled together.
const TOGETHER: usize = 4;
/// Bytes of one load: four pixels, and four bytes that no weight sees.
const LOAD: usize = 16;

/// Proof that the processor has AVX2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(pulp::x86::V3);

impl Avx2 {
    /// `None` on a processor without it. The look-up is remembered.
    pub(super) fn detect() -> Option<Self> {
        pulp::x86::V3::try_new().map(Self)
    }

    /// `work`, which is to be inlined, compiled for AVX2.
    #[inline(always)]
    pub(super) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        self.0.vectorize(work)
    }

    /// Each of `numbers` of the rows resampled in its width.
    pub(super) fn horizontal_passes(
        self,
        rows: Rows<'_>,
        numbers: Range<usize>,
        taps: &mut Taps,
        padded: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let groups = taps.split();
        let length = taps.len() * 3;
        let padded_length = rows.length + groups * 4 * 3 + LOAD;
        padded.resize(TOGETHER * padded_length, 0);
        let wanted = numbers.len() * length;
        out.resize(wanted.next_multiple_of(TOGETHER * length), 0);
        for (block, out) in out.chunks_exact_mut(TOGETHER * length).enumerate() {
            for (place, padded) in padded.chunks_exact_mut(padded_length).enumerate() {
                // Behind the last row it is shown again; what is made of it is cut off.
                let number = (numbers.start + block * TOGETHER + place).min(numbers.end - 1);
                padded[..rows.length].copy_from_slice(rows.row(number));
            }
            let kernel = FourRows { avx2: self.0, padded, padded_length, taps, groups, out, length };
            self.0.vectorize(kernel);
        }
        out.truncate(wanted);
    }
}

/// Four padded rows and where they go.
struct FourRows<'a> {
    avx2: pulp::x86::V3,
    padded: &'a [u8],
    padded_length: usize,
    taps: &'a Taps,
    groups: usize,
    out: &'a mut [u8],
    length: usize,
}

impl pulp::NullaryFnOnce for FourRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { avx2, padded, padded_length, taps, groups, out, length } = self;
        let (front, back) = padded.split_at(2 * padded_length);
        let (front, back) = (front.split_at(padded_length), back.split_at(padded_length));
        let (out_front, out_back) = out.split_at_mut(2 * length);
        let (out_a, out_b) = out_front.split_at_mut(length);
        let (out_c, out_d) = out_back.split_at_mut(length);
        let mut at_out = 0;
        for (first, weights) in taps.iter_split(groups) {
            let mut sums = [Sums::new(avx2), Sums::new(avx2)];
            for (group, weights) in weights.iter().enumerate() {
                let at = (first + group * 4) * 3;
                let weights = broadcast(avx2, *weights);
                sums[0].add(avx2, load(avx2, front, at), &weights);
                sums[1].add(avx2, load(avx2, back, at), &weights);
            }
            let [a, c, _, _, b, d, _, _] = bytes(avx2, sums);
            put(out_a, at_out, a);
            put(out_b, at_out, b);
            put(out_c, at_out, c);
            put(out_d, at_out, d);
            at_out += 3;
        }
    }
}

/// Four pixels of each of two rows, one row in each half. There is room behind every row for a whole load.
#[inline(always)]
fn load(avx2: pulp::x86::V3, (one, two): (&[u8], &[u8]), at: usize) -> __m256i {
    avx2.avx._mm256_set_m128i(load_half(two, at), load_half(one, at))
}

#[inline(always)]
fn load_half(row: &[u8], at: usize) -> __m128i {
    let Some((_, row)) = row.split_at_checked(at) else { return cast([0u8; LOAD]) };
    match row.first_chunk::<LOAD>() {
        Some(bytes) => cast(*bytes),
        None => cast([0u8; LOAD]),
    }
}

/// Each pair of weights, eight times. Written out, as is all of this: a closure would not be compiled for AVX2.
#[inline(always)]
fn broadcast(avx2: pulp::x86::V3, [a, b, c, d]: [i32; 4]) -> [__m256i; 4] {
    let set = avx2.avx;
    [set._mm256_set1_epi32(a), set._mm256_set1_epi32(b), set._mm256_set1_epi32(c), set._mm256_set1_epi32(d)]
}

/// Sums of red, green, blue and nothing for one pixel of each of two rows, in two parts.
#[derive(Clone, Copy)]
struct Sums {
    high: __m256i,
    low: __m256i,
}

impl Sums {
    #[inline(always)]
    fn new(avx2: pulp::x86::V3) -> Self {
        let half = avx2.avx._mm256_set1_epi32(1 << (PRECISION_BITS - 1));
        Self { high: avx2.avx._mm256_setzero_si256(), low: half }
    }

    /// Adds four pixels with their weights.
    #[inline(always)]
    fn add(&mut self, avx2: pulp::x86::V3, pixels: __m256i, weights: &[__m256i; 4]) {
        let [high_front, high_back, low_front, low_back] = *weights;
        self.add_pair(avx2, avx2.avx2._mm256_shuffle_epi8(pixels, cast(CHANNELS[0])), high_front, low_front);
        self.add_pair(avx2, avx2.avx2._mm256_shuffle_epi8(pixels, cast(CHANNELS[1])), high_back, low_back);
    }

    #[inline(always)]
    fn add_pair(&mut self, avx2: pulp::x86::V3, values: __m256i, high: __m256i, low: __m256i) {
        let wide = avx2.avx2;
        self.high = wide._mm256_add_epi32(self.high, wide._mm256_madd_epi16(values, high));
        self.low = wide._mm256_add_epi32(self.low, wide._mm256_madd_epi16(values, low));
    }

    /// The whole sums, without their fractional bits.
    #[inline(always)]
    fn rounded(self, avx2: pulp::x86::V3) -> __m256i {
        let wide = avx2.avx2;
        let sums = wide._mm256_add_epi32(wide._mm256_slli_epi32::<LOW_BITS>(self.high), self.low);
        wide._mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sums)
    }
}

/// Bytes to 16-bit numbers, each channel's pair side by side: of the first two pixels, then of the next two.
/// 0x80 gives zero.
const CHANNELS: [[u8; 32]; 2] = [channels(0), channels(6)];

const fn channels(first: u8) -> [u8; 32] {
    let mut bytes = [0x80; 32];
    let mut at = 0;
    while at < 6 {
        // Even places are the first pixel, odd ones the second.
        let source = first + (at / 2) as u8 + (at % 2) as u8 * 3;
        bytes[at * 2] = source;
        bytes[at * 2 + 16] = source;
        at += 1;
    }
    bytes
}

/// Clips both pairs of rows to bytes: a pixel is a number of four bytes, the last of which means nothing.
#[inline(always)]
fn bytes(avx2: pulp::x86::V3, [front, back]: [Sums; 2]) -> [u32; 8] {
    let wide = avx2.avx2;
    let words = wide._mm256_packs_epi32(front.rounded(avx2), back.rounded(avx2));
    cast(wide._mm256_packus_epi16(words, words))
}

/// Writes a pixel; all but the last of a row as four bytes, of which the next one overwrites the last.
#[inline(always)]
fn put(out: &mut [u8], at: usize, pixel: u32) {
    let pixel = pixel.to_le_bytes();
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&pixel);
    } else if let Some(place) = out.get_mut(at..at + 3) {
        place.copy_from_slice(&pixel[..3]);
    }
}
