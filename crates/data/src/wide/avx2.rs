//! Registers of 256 bits: AVX2, which x86-64 processors have had since 2013.

use std::arch::x86_64::{__m256, __m256i};

use pulp::NullaryFnOnce;
use pulp::bytemuck::cast;
use pulp::x86::V3;

use super::{CHANNELS, Column, Columns, LANE, MOST_LANES, THREE_OF_FOUR, Wide, bytes, pair_of_pixels};
use crate::resize::{LOW_BITS, PRECISION_BITS};

const PAIRS: [[[u8; LANE]; 2]; 2] = [[pair_of_pixels(0); 2], [pair_of_pixels(6); 2]];

impl Wide for V3 {
    type Register = __m256i;
    type Floats = __m256;
    const LANES: usize = 2;

    #[inline(always)]
    fn gather(self, [one, two, ..]: [[u8; LANE]; MOST_LANES]) -> __m256i {
        cast([one, two])
    }

    #[inline(always)]
    fn load(self, row: &[u8], at: usize) -> __m256i {
        cast(bytes::<{ 2 * LANE }>(row, at))
    }

    #[inline(always)]
    fn splat(self, bits: i32) -> __m256i {
        self.avx._mm256_set1_epi32(bits)
    }

    #[inline(always)]
    fn channels(self, pixels: __m256i, next: bool) -> __m256i {
        self.avx2._mm256_shuffle_epi8(pixels, cast(PAIRS[usize::from(next)]))
    }

    #[inline(always)]
    fn interleave(self, one: __m256i, two: __m256i, upper: bool) -> __m256i {
        match upper {
            false => self.avx2._mm256_unpacklo_epi8(one, two),
            true => self.avx2._mm256_unpackhi_epi8(one, two),
        }
    }

    #[inline(always)]
    fn add_products(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        self.avx2._mm256_add_epi32(sum, self.avx2._mm256_madd_epi16(a, b))
    }

    #[inline(always)]
    fn whole(self, high: __m256i, low: __m256i) -> __m256i {
        let sums = self.avx2._mm256_add_epi32(self.avx2._mm256_slli_epi32::<LOW_BITS>(high), low);
        self.avx2._mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sums)
    }

    #[inline(always)]
    fn pack(self, [a, b, c, d]: [__m256i; 4]) -> __m256i {
        let (front, back) = (self.avx2._mm256_packs_epi32(a, b), self.avx2._mm256_packs_epi32(c, d));
        self.avx2._mm256_packus_epi16(front, back)
    }

    #[inline(always)]
    fn rgb(self, pixels: __m256i) -> __m256i {
        self.avx2._mm256_shuffle_epi8(pixels, cast([THREE_OF_FOUR; 2]))
    }

    #[inline(always)]
    fn lanes(self, register: __m256i) -> impl AsRef<[[u8; LANE]]> {
        cast::<__m256i, [[u8; LANE]; 2]>(register)
    }

    #[inline(always)]
    fn add_words(self, a: __m256i, b: __m256i) -> __m256i {
        self.avx2._mm256_add_epi16(a, b)
    }

    #[inline(always)]
    fn subtract_words(self, a: __m256i, b: __m256i) -> __m256i {
        self.avx2._mm256_sub_epi16(a, b)
    }

    #[inline(always)]
    fn upper_products(self, a: __m256i, b: __m256i) -> __m256i {
        self.avx2._mm256_mulhi_epi16(a, b)
    }

    #[inline(always)]
    fn halves(self, words: __m256i) -> __m256i {
        self.avx2._mm256_srai_epi16::<1>(words)
    }

    #[inline(always)]
    fn sixteenths(self, words: __m256i) -> __m256i {
        self.avx2._mm256_srai_epi16::<4>(words)
    }

    #[inline(always)]
    fn interleave_words(self, one: __m256i, two: __m256i, upper: bool) -> __m256i {
        match upper {
            false => self.avx2._mm256_unpacklo_epi16(one, two),
            true => self.avx2._mm256_unpackhi_epi16(one, two),
        }
    }

    #[inline(always)]
    fn upper_words(self, one: __m256i, two: __m256i) -> __m256i {
        let (one, two) = (self.avx2._mm256_srai_epi32::<16>(one), self.avx2._mm256_srai_epi32::<16>(two));
        self.avx2._mm256_packs_epi32(one, two)
    }

    #[inline(always)]
    fn pack_words(self, one: __m256i, two: __m256i) -> __m256i {
        self.avx2._mm256_packus_epi16(one, two)
    }

    #[inline(always)]
    fn channel(self, pixels: __m256i, channel: usize, mirrored: bool) -> __m256 {
        let mask = cast([CHANNELS[usize::from(mirrored)][channel]; 2]);
        self.avx._mm256_cvtepi32_ps(self.avx2._mm256_shuffle_epi8(pixels, mask))
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> __m256 {
        self.avx._mm256_set1_ps(value)
    }

    #[inline(always)]
    fn times(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_mul_ps(a, b)
    }

    #[inline(always)]
    fn minus(self, a: __m256, b: __m256) -> __m256 {
        self.avx._mm256_sub_ps(a, b)
    }

    #[inline(always)]
    fn times_plus(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.fma._mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    fn values(self, floats: __m256) -> impl AsRef<[f32]> {
        cast::<__m256, [f32; 8]>(floats)
    }

    #[inline(always)]
    fn columns(columns: &mut Columns) -> &mut Vec<Column<Self>> {
        &mut columns.avx2
    }

    #[inline(always)]
    fn vectorize<F: NullaryFnOnce>(self, work: F) -> F::Output {
        Self::vectorize(self, work)
    }
}
